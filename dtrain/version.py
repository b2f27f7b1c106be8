"""The package's version, in a module of its own, which modules that `dtrain` itself imports can import."""

__version__ = "0.2.0"

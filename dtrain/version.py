"""The package's version, in a module of its own: model folders name it, and what loads them is imported by `dtrain`."""

__version__ = "0.2.0"

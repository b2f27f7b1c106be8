"""dtrain: distil a large text encoder, fine-tuned over many GPUs, into small fast models.

`dtrain.load(folder)` gives any model that dtrain wrote. Everything else is the command line (`dtrain -h`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtrain.autoclasses import register_when_imported

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dtrain.models import load

__all__ = ["__version__", "load"]


register_when_imported()


def __getattr__(name: str) -> Any:
    # torch takes over a second to import: only who loads a model pays for it.
    if name == "load":
        from dtrain.models import load

        return load
    raise AttributeError(f"module 'dtrain' has no attribute {name!r}")

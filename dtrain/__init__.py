"""dtrain: distil a large text encoder, fine-tuned over many GPUs, into small fast models.

The stable Python interface is `__all__`; `dtrain help prediction` shows it in use. Everything else is done by the command
line (`dtrain -h`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dtrain.errors import DtrainError, InputError
from dtrain.version import __version__

if TYPE_CHECKING:
    from dtrain.api import check, run
    from dtrain.knowledge.reader import StoreReader
    from dtrain.models import load
    from dtrain.predict.predictor import Predictor

__all__ = ["DtrainError", "InputError", "Predictor", "StoreReader", "__version__", "check", "load", "run"]

# Importing torch takes over a second, so the modules of these names are imported on first use.
_HOMES = {
    "Predictor": "dtrain.predict.predictor",
    "StoreReader": "dtrain.knowledge.reader",
    "check": "dtrain.api",
    "load": "dtrain.models",
    "run": "dtrain.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

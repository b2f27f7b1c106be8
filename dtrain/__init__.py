"""dtrain: distil a large text encoder, fine-tuned over many GPUs, into small fast models.

`dtrain.load(folder)` gives any model that dtrain wrote, and `dtrain.Predictor(folder)(texts)` its answers. Everything else
is the command line (`dtrain -h`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtrain.version import __version__

if TYPE_CHECKING:
    from dtrain.models import load
    from dtrain.predict.predictor import Predictor

__all__ = ["Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes over a second to import: only who loads a model pays for it.
    if name == "load":
        from dtrain.models import load

        return load
    if name == "Predictor":
        from dtrain.predict.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'dtrain' has no attribute {name!r}")

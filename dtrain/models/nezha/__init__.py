"""NEZHA for transformers 5: configuration, encoder, heads, and their place among the Auto classes.

Names are imported when they are first used: while transformers is being imported only the configuration may
be.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dtrain.models.nezha.auto import register

if TYPE_CHECKING:
    from dtrain.models.nezha.configuration import NezhaConfig
    from dtrain.models.nezha.heads import (
        NezhaForMaskedLM,
        NezhaForMultipleChoice,
        NezhaForNextSentencePrediction,
        NezhaForPreTraining,
        NezhaForPreTrainingOutput,
        NezhaForQuestionAnswering,
        NezhaForSequenceClassification,
        NezhaForTokenClassification,
    )
    from dtrain.models.nezha.modeling import NezhaModel, NezhaPreTrainedModel

__all__ = [
    "NezhaConfig",
    "NezhaForMaskedLM",
    "NezhaForMultipleChoice",
    "NezhaForNextSentencePrediction",
    "NezhaForPreTraining",
    "NezhaForPreTrainingOutput",
    "NezhaForQuestionAnswering",
    "NezhaForSequenceClassification",
    "NezhaForTokenClassification",
    "NezhaModel",
    "NezhaPreTrainedModel",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"NezhaConfig": "configuration", "NezhaModel": "modeling", "NezhaPreTrainedModel": "modeling"}
    return getattr(import_module(f"{__name__}.{home.get(name, 'heads')}"), name)

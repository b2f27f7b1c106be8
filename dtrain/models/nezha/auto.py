"""Registers NEZHA with transformers' Auto classes: its configuration, its tokenizer (BERT's), a class for each task."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoTokenizer, BertTokenizer
from transformers.models.auto import modeling_auto

from dtrain.models.nezha import heads
from dtrain.models.nezha.configuration import NezhaConfig
from dtrain.models.nezha.modeling import NezhaModel

TASKS = (
    "MaskedLM",
    "MultipleChoice",
    "NextSentencePrediction",
    "PreTraining",
    "QuestionAnswering",
    "SequenceClassification",
    "TokenClassification",
)


def register() -> None:
    """Register `model_type: nezha` with the Auto classes; a second call changes nothing."""
    AutoConfig.register(NezhaConfig.model_type, NezhaConfig, exist_ok=True)
    AutoTokenizer.register(NezhaConfig, tokenizer_class=BertTokenizer, exist_ok=True)
    AutoModel.register(NezhaConfig, NezhaModel, exist_ok=True)
    for task in TASKS:
        auto = getattr(modeling_auto, f"AutoModelFor{task}")
        auto.register(NezhaConfig, getattr(heads, f"NezhaFor{task}"), exist_ok=True)

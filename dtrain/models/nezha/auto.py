"""NEZHA's place among transformers' Auto classes.

It must be taken while transformers is being imported, or a user's first `AutoModel.from_pretrained` comes
too early. Some of transformers' modules are half imported then, so each Auto class is told as soon as it is
there itself and not before, and what NEZHA imports of transformers must not import an Auto class in turn
(`modeling_layers` does).
"""

from __future__ import annotations

import sys

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
    """Tell those Auto classes of `model_type: nezha` that are imported by now. Call it again when more are."""
    for module, needed, tell in (
        ("configuration_auto", "AutoConfig", _register_configuration),
        ("modeling_auto", f"AutoModelFor{TASKS[-1]}", _register_models),
        ("tokenization_auto", "AutoTokenizer", _register_tokenizer),
    ):
        if hasattr(sys.modules.get(f"transformers.models.auto.{module}"), needed):
            tell()


def _register_configuration() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from dtrain.models.nezha.configuration import NezhaConfig

    AutoConfig.register(NezhaConfig.model_type, NezhaConfig, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto

    from dtrain.models.nezha import heads
    from dtrain.models.nezha.configuration import NezhaConfig
    from dtrain.models.nezha.modeling import NezhaModel

    modeling_auto.AutoModel.register(NezhaConfig, NezhaModel, exist_ok=True)
    for task in TASKS:
        auto = getattr(modeling_auto, f"AutoModelFor{task}")
        auto.register(NezhaConfig, getattr(heads, f"NezhaFor{task}"), exist_ok=True)


def _register_tokenizer() -> None:
    from transformers.models.auto.tokenization_auto import AutoTokenizer
    from transformers.models.bert.tokenization_bert import BertTokenizer

    from dtrain.models.nezha.configuration import NezhaConfig

    AutoTokenizer.register(NezhaConfig, tokenizer_class=BertTokenizer, exist_ok=True)

"""BERT and NEZHA classifiers through transformers: from scratch (size or shape) or pretrained (folder or hub name)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedModel,
)

from dtrain.errors import InputError
from dtrain.models.folder import quiet_transformers
from dtrain.recipe.schema import EncoderSpec, NezhaSpec

POSITIONS = 512
ATTENTION = "sdpa"
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def build_encoder(
    spec: EncoderSpec, *, vocabulary: int, labels: list[str], pad_id: int, max_length: int | None = None
) -> PreTrainedModel:
    """A classifier in training mode, float32; what is not pretrained is drawn from torch's generator.

    Raises:
        InputError: naming the recipe's key, for a shape that does not fit or a pretrained model that is not
            there, is damaged, or is too small for the tokenizer or `max_length`.
    """
    if spec.pretrained:
        model = _pretrained(spec, vocabulary=vocabulary, labels=labels, max_length=max_length)
    else:
        model = _from_scratch(spec, vocabulary=vocabulary, labels=labels, pad_id=pad_id, max_length=max_length)
    return model.train()


def _from_scratch(
    spec: EncoderSpec, *, vocabulary: int, labels: list[str], pad_id: int, max_length: int | None
) -> PreTrainedModel:
    hidden, layers, heads = spec.shape()
    dropouts: dict[str, Any] = {} if spec.dropout is None else dict.fromkeys(DROPOUTS, spec.dropout)
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": spec.intermediate or 4 * hidden,
        "max_position_embeddings": max(POSITIONS, max_length or 0),
        "pad_token_id": pad_id,
        **_label_maps(labels),
        **dropouts,
    }
    if isinstance(spec, NezhaSpec):
        config: Any = AutoConfig.for_model("nezha", max_relative_position=spec.max_relative_position, **shape)
        config.architectures = ["NezhaForSequenceClassification"]
    else:
        config = BertConfig(architectures=["BertForSequenceClassification"], **shape)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)


def _pretrained(spec: EncoderSpec, *, vocabulary: int, labels: list[str], max_length: int | None) -> PreTrainedModel:
    name = str(spec.pretrained)
    key = "model.pretrained"
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise InputError(f"{key}: {name}: has no config.json")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **_label_maps(labels))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {name!r} is neither a model folder nor a hub model: {_first_line(error)}") from None
    if spec.dropout is not None:
        _set_dropout(config, spec.dropout)
    _check_room(config, name, vocabulary, max_length)
    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name,
                config=config,
                dtype="float32",
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=ATTENTION,
                # A head for another number of labels is drawn anew; the rest must fit, see below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # the loader of a damaged file raises types of its own (SafetensorError, ...)
        raise InputError(f"{key}: {name}: cannot be loaded: {_first_line(error)}") from None
    _check_encoder(model, info, f"{key}: {name}")
    return model


def _label_maps(labels: list[str]) -> dict[str, Any]:
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _set_dropout(config: Any, dropout: float) -> None:
    if not hasattr(config, DROPOUTS[0]):
        raise InputError(f"model.dropout: cannot be set for a pretrained {config.model_type!r} model")
    for name in DROPOUTS:
        setattr(config, name, dropout)


def _check_room(config: Any, name: str, vocabulary: int, max_length: int | None) -> None:
    if vocabulary > config.vocab_size:
        raise InputError(
            f"model.pretrained: {name}: has {config.vocab_size} token embeddings, but its tokenizer has "
            f"{vocabulary} tokens"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if max_length and positions and max_length > positions and config.model_type != "nezha":
        raise InputError(f"data.max_length: {max_length} is more than the {positions} positions of {name}")


def _check_encoder(model: PreTrainedModel, info: dict[str, Any], where: str) -> None:
    """Refuse a checkpoint that would leave part of the encoder at random values."""
    prefix = model.base_model_prefix + "."
    absent = [key for key in info["missing_keys"] if key.startswith(prefix) and ".pooler." not in key]
    misfit = [key for key, *_ in info["mismatched_keys"] if key.startswith(prefix)]
    if absent:
        raise InputError(f"{where}: lacks {sorted(absent)[0]} and {len(absent) - 1} more weights of the encoder")
    if misfit:
        raise InputError(f"{where}: {sorted(misfit)[0]} has another shape than config.json says")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""BERT and NEZHA through transformers, as classifiers or as encoders of taggers, from scratch or pretrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertModel,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

import dtrain.models.nezha  # noqa: F401  registers NEZHA with the Auto classes
from dtrain.errors import InputError
from dtrain.hub import ask_hub
from dtrain.models.whole import first_line, load_whole
from dtrain.quiet import quiet_transformers
from dtrain.recipe.models import EncoderSpec

POSITIONS = 512
ATTENTION = "sdpa"
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def build_classifier(
    spec: EncoderSpec,
    *,
    vocabulary: int,
    labels: list[str],
    pad_id: int,
    max_length: int | None = None,
    tokenizer_path: Path | None = None,
) -> PreTrainedModel:
    """A classifier in training mode, float32; what is not pretrained is drawn from torch's generator.

    Raises:
        InputError: naming the recipe's key, for a shape that does not fit or a pretrained model that is
            missing, damaged, or too small for the tokenizer or `max_length`.
    """
    maps = _label_maps(labels)
    if spec.pretrained:
        key = "model.pretrained"
        model = _pretrained(AutoModelForSequenceClassification, spec, key, vocabulary, max_length, **maps)
    else:
        config = _new_config(spec, vocabulary, pad_id, max_length, **maps)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)
        model.config.architectures = [type(model).__name__]
    return model.train()


def build_encoder(
    spec: EncoderSpec, *, vocabulary: int, pad_id: int, max_length: int | None = None, pooler: bool = False
) -> PreTrainedModel:
    """A tagger's encoder, without head, and without pooler unless asked for, in training mode, float32.

    Raises:
        InputError: as `build_classifier`.
    """
    if spec.pretrained:
        model = _pretrained(AutoModel, spec, "model.encoder.pretrained", vocabulary, max_length)
    else:
        config = _new_config(spec, vocabulary, pad_id, max_length)
        model = AutoModel.from_config(config, attn_implementation=ATTENTION)
    return (model if pooler else _without_pooler(model)).train()


def build_masked_lm(
    spec: EncoderSpec,
    *,
    vocabulary: int,
    pad_id: int,
    max_length: int | None = None,
    next_sentence: bool = False,
) -> PreTrainedModel:
    """The encoder with a masked-language-model head, in training mode, float32.

    Args:
        next_sentence: whether it has a pooler and a next-sentence head, too; a pretrained model without them gets new
            ones.

    Raises:
        InputError: as `build_classifier`; or for a pretrained model of another type.
    """
    auto = AutoModelForPreTraining if next_sentence else AutoModelForMaskedLM
    key = "pretrain.model.pretrained"
    if spec.pretrained:
        model = _pretrained(auto, spec, key, vocabulary, max_length)
    else:
        config = _new_config(spec, vocabulary, pad_id, max_length)
        model = auto.from_config(config, attn_implementation=ATTENTION)
    if model.config.model_type != spec.type:
        raise InputError(f"{key}: {spec.source}: is of type {model.config.model_type!r}, not {spec.type!r}")
    if next_sentence and model.config.type_vocab_size < 2:
        raise InputError(f"{key}: {spec.source}: has one token type, and pretrain.next_sentence needs two")
    return model.train()


def load_masked_lm(spec: EncoderSpec, key: str, vocabulary: int) -> PreTrainedModel:
    """The pretrained model that a section names, with its masked-language-model head, on the CPU, float32.

    Args:
        key: of the recipe, for error messages.
        vocabulary: the least number of tokens that it must score.

    Raises:
        InputError: as `build_classifier`, or where it has no such head.
    """
    model: Any = _pretrained(AutoModelForMaskedLM, spec, key, vocabulary, None, needed="cls.predictions.")
    decoder = model.cls.predictions.decoder
    decoder.weight = nn.Parameter(decoder.weight.detach().clone())  # untied, to be cast to a dtype of its own
    found: PreTrainedModel = model
    return found


def load_trunk(spec: EncoderSpec, key: str) -> PreTrainedModel:
    """The transformer of the pretrained model that a section names, without head and pooler, on the CPU, float32.

    Raises:
        InputError: as `build_classifier`.
    """
    return _without_pooler(_pretrained(AutoModel, spec, key, 0, None))


def encoder_config(encoder: PreTrainedModel) -> dict[str, Any]:
    """The encoder's configuration as JSON values, without entries that name files or labels."""
    values = json.loads(json.dumps(encoder.config.to_dict()))
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "id2label", "label2id")}


def encoder_from_config(config: dict[str, Any], *, pooler: bool = False) -> PreTrainedModel:
    """A new encoder, as `build_encoder` makes it, from what `encoder_config` returned.

    Raises:
        ValueError: if it describes no model.
    """
    try:
        values = dict(config)
        known = AutoConfig.for_model(values.pop("model_type"), **values)
        model = AutoModel.from_config(
            known, attn_implementation=ATTENTION, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # wrong values fail anywhere in the model's constructor
        raise ValueError(f"encoder: {first_line(error)}") from None
    return (model if pooler else _without_pooler(model)).train()


def without_mask_checks(model: nn.Module, device: torch.device) -> nn.Module:
    """Keep a BERT from waiting for the GPU: in every batch, transformers looks whether the mask [B, L] hides anything.

    It passes boolean masks [B, 1, 1, L] on to SDPA without looking, so masks get this form. On a CPU nothing is
    changed: looking is cheap there, and batches without padding then need no mask.
    """

    def widen(_: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        mask = named.get("attention_mask")
        if mask is not None and mask.dim() == 2:
            named["attention_mask"] = mask[:, None, None, :].bool()
        return args, named

    if device.type != "cpu":
        for module in model.modules():
            if isinstance(module, BertModel) and module.config._attn_implementation == ATTENTION:
                module.register_forward_pre_hook(widen, with_kwargs=True)
    return model


def _without_pooler(model: Any) -> Any:
    """Remove the pooler: taggers do not read it, and DDP waits for the gradient of every parameter."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _new_config(spec: EncoderSpec, vocabulary: int, pad_id: int, max_length: int | None, **labels: Any) -> Any:
    dropouts: dict[str, Any] = {} if spec.dropout is None else dict.fromkeys(DROPOUTS, spec.dropout)
    shape: dict[str, Any] = {
        **spec.config(),
        "vocab_size": vocabulary,
        "max_position_embeddings": max(POSITIONS, max_length or 0),
        "pad_token_id": pad_id,
        **labels,
        **dropouts,
    }
    return AutoConfig.for_model(shape.pop("model_type"), **shape)


def _pretrained(
    auto: Any,
    spec: EncoderSpec,
    key: str,
    vocabulary: int,
    max_length: int | None,
    *,
    needed: str | None = None,
    **labels: Any,
) -> PreTrainedModel:
    """Load the pretrained model; weights whose names begin with `needed` must be there, too."""
    name = str(spec.source)
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise InputError(f"{key}: {name}: has no config.json")
    if not Path(name).exists():
        ask_hub()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **labels)
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {name!r} is neither a model folder nor a hub model: {first_line(error)}") from None
    if spec.dropout is not None:
        _set_dropout(config, spec.dropout, key)
    _check_room(config, name, key, vocabulary, max_length)
    try:
        with quiet_transformers():
            model, info = auto.from_pretrained(
                name,
                config=config,
                dtype="float32",
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=ATTENTION,
                # A head for another number of labels gets new weights; the rest must fit, see below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # the loader of a damaged file raises types of its own (SafetensorError, ...)
        reason = first_line(error)
        if "model.safetensors" in reason and isinstance(error, OSError):  # an old hub model
            reason += (
                "; pickled weights, which can run code when they are opened, are not loaded: where it has a "
                f"pytorch_model.bin, `dtrain convert {name}` turns that into model.safetensors"
            )
        raise InputError(f"{key}: {name}: cannot be loaded: {reason}") from None
    _check_encoder(model, info, f"{key}: {name}")
    if needed and (absent := sorted(weight for weight in info["missing_keys"] if weight.startswith(needed))):
        raise InputError(f"{key}: {name}: lacks {absent[0]}: it has no head of a masked language model")
    return model


def _label_maps(labels: list[str]) -> dict[str, Any]:
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _set_dropout(config: Any, dropout: float, key: str) -> None:
    if not hasattr(config, DROPOUTS[0]):
        where = key.replace("pretrained", "dropout")
        raise InputError(f"{where}: cannot be set for a pretrained {config.model_type!r} model")
    for name in DROPOUTS:
        setattr(config, name, dropout)


def _check_room(config: Any, name: str, key: str, vocabulary: int, max_length: int | None) -> None:
    if vocabulary > config.vocab_size:
        raise InputError(
            f"{key}: {name}: has {config.vocab_size} token embeddings, but its tokenizer has {vocabulary} tokens"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if max_length and positions and max_length > positions and config.model_type != "nezha":
        raise InputError(f"data.max_length: {max_length} is more than the {positions} positions of {name}")


def _check_encoder(model: PreTrainedModel, info: dict[str, Any], where: str) -> None:
    """Refuse a checkpoint that would leave part of the encoder at random values."""
    prefix = "" if model.base_model is model else model.base_model_prefix + "."
    absent = [key for key in info["missing_keys"] if key.startswith(prefix) and "pooler." not in key]
    misfit = [key for key, *_ in info["mismatched_keys"] if key.startswith(prefix)]
    if absent:
        more = f" and {len(absent) - 1} more weights" if len(absent) > 1 else ""
        raise InputError(f"{where}: lacks {sorted(absent)[0]}{more} of the encoder")
    if misfit:
        raise InputError(f"{where}: {sorted(misfit)[0]} has another shape than config.json says")


def classifier_types() -> list[str]:
    """Every `model_type` of config.json that transformers has a sequence classifier for."""
    # By name: listing the classes themselves imports some 250 modules, which takes every rank half a second.
    return sorted({*MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "nezha"} & set(CONFIG_MAPPING))


def load_classifier(folder: Path) -> PreTrainedModel:
    """The classifier of a model folder, which must hold every weight of the model and no other.

    Raises:
        InputError: naming the file and the weight.
    """
    return load_whole(folder, AutoModelForSequenceClassification)

"""Encoder-decoders of transformers: built and loaded."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from dtrain.data.tokenizers import TARGET_FILE
from dtrain.data.written import load_ends, load_written_count
from dtrain.errors import InputError
from dtrain.hub import ask_hub
from dtrain.models.whole import first_line, load_whole
from dtrain.quiet import quiet_transformers
from dtrain.recipe.architectures.seq2seq import written_tokens
from dtrain.recipe.models import EncoderSpec
from dtrain.recipe.taught import one_vocabulary

POSITIONS = 512
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")


def build_seq2seq(
    spec: EncoderSpec,
    *,
    labels: list[str],
    tokenizer_path: Path | None,
    vocabulary: int,
    pad_id: int,
    max_length: int | None = None,
) -> PreTrainedModel:
    """An encoder-decoder in training mode, float32; what is not pretrained is drawn from torch's generator.

    Args:
        labels: names of the data's labels, for its config.json.
        tokenizer_path: the folder of its tokenizer; None where the shape of the model is all that matters: the ids of
            its start and end tokens are then arbitrary.

    Raises:
        InputError: naming the recipe's key, for a pretrained model that is not there, is damaged, or is too small for the
            tokenizer or `max_length`; or for two vocabularies in an architecture that has one.
    """
    ends, written = {"start": 2, "end": 3}, vocabulary
    two = bool(getattr(spec, "two_vocabularies", False))
    if tokenizer_path is not None:
        ends, written = load_ends(tokenizer_path), load_written_count(tokenizer_path)
        two = (tokenizer_path / TARGET_FILE).is_file()  # also where the tokenizer came with a teacher's folder
    if spec.pretrained:
        return _labelled(_pretrained(spec, vocabulary, written, max_length), labels).train()
    values: dict[str, Any] = {
        **spec.config(),
        "eos_token_id": ends["end"],
        "decoder_start_token_id": ends["start"],
        "vocab_size": vocabulary,
        "max_position_embeddings": max(POSITIONS, max_length or 0),
        "pad_token_id": pad_id,
        "bos_token_id": ends["start"],
        "forced_eos_token_id": ends["end"],
        "scale_embedding": True,
        **dict.fromkeys(DROPOUTS[:2], 0.1 if spec.dropout is None else spec.dropout),
    }
    if two:
        if problem := one_vocabulary(spec):
            raise InputError(f"model.type: {problem}")
        values |= {"decoder_vocab_size": written, "share_encoder_decoder_embeddings": False}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with quiet_transformers():
        model = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="sdpa")
    model.config.architectures = [type(model).__name__]
    return _labelled(model, labels).train()


def writes(config: dict[str, Any]) -> bool:
    """Whether a config.json is of an encoder-decoder that transformers has a class for."""
    known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in known and config.get("architectures") == [known[kind]]


def load_seq2seq(folder: Path) -> PreTrainedModel:
    """The encoder-decoder of a model folder, which must hold every weight of the model and no other.

    Raises:
        InputError: naming the file and the weight.
    """
    return load_whole(folder, AutoModelForSeq2SeqLM)


def _pretrained(spec: EncoderSpec, vocabulary: int, written: int, max_length: int | None) -> PreTrainedModel:
    name, key = str(spec.source), "model.pretrained"
    if not Path(name).is_dir():
        ask_hub()
    elif not Path(name, "config.json").is_file():
        raise InputError(f"{key}: {name}: has no config.json")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {name!r} is neither a model folder nor a hub model: {first_line(error)}") from None
    if config.model_type != spec.type:
        raise InputError(f"{key}: {name}: is of type {config.model_type!r}, not {spec.type!r}")
    if spec.dropout is not None:
        for dropout in DROPOUTS[:2]:
            setattr(config, dropout, spec.dropout)
    if vocabulary > config.vocab_size:
        raise InputError(
            f"{key}: {name}: has {config.vocab_size} token embeddings, but its tokenizer has {vocabulary} tokens"
        )
    if written > (tokens := written_tokens(config.to_dict())):
        raise InputError(f"{key}: {name}: writes {tokens} tokens, but its tokenizer of the target has {written}")
    if max_length and max_length > config.max_position_embeddings:
        raise InputError(
            f"data.max_length: {max_length} is more than the {config.max_position_embeddings} positions of {name}"
        )
    load = functools.partial(AutoModelForSeq2SeqLM.from_pretrained, name, config=config, dtype="float32")
    try:
        with quiet_transformers():
            model, info = load(
                use_safetensors=True, trust_remote_code=False, attn_implementation="sdpa", output_loading_info=True
            )
    except Exception as error:  # the loader of a damaged file raises types of its own (SafetensorError, ...)
        raise InputError(f"{key}: {name}: cannot be loaded: {first_line(error)}") from None
    if info["missing_keys"]:
        raise InputError(f"{key}: {name}: lacks {min(info['missing_keys'])}")
    found: PreTrainedModel = model
    # `generate` reads generation_config.json, which may leave out what config.json says.
    for token in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(found.generation_config, token) is None:
            setattr(found.generation_config, token, getattr(config, token))
    return found


def _labelled(model: PreTrainedModel, labels: list[str]) -> PreTrainedModel:
    """The model, with the names of its data's labels in its configuration, which is their only use."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    return model

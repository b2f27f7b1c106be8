"""Classifiers and taggers: modules that know nothing of ranks or losses, built from a recipe or loaded from a folder.

Every classifier is called `model(input_ids=, attention_mask=, token_type_ids=None)` with int64 [B, L] and returns
something with `.logits` [B, C]. A tagger also takes `tags=` and `marginals=` and returns a `TaggerOutput`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dtrain.data.files import resolve_path
from dtrain.data.vocabularies import load_tokenizer
from dtrain.errors import InputError
from dtrain.models import own
from dtrain.models.folder import describe, in_own_memory, load, parameter_count, save_model, weights_fingerprint
from dtrain.models.output import ClassifierOutput, TaggerOutput
from dtrain.models.word_vectors import fill_embedding
from dtrain.recipe.models import EncoderSpec, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "ClassifierOutput",
    "TaggerOutput",
    "build",
    "describe",
    "embedding_of",
    "load",
    "parameter_count",
    "save_model",
    "weights_fingerprint",
]


def build(
    spec: ModelSpec,
    *,
    vocabulary: int,
    labels: list[str],
    pad_id: int,
    tokenizer_path: Path | None = None,
    max_length: int | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    privileged: list[str] | None = None,
) -> nn.Module:
    """Build a new model in training mode on the CPU; its weights depend on the arguments and torch's generator alone.

    Args:
        spec: the recipe's `model` section.
        vocabulary: number of token ids of the tokenizer.
        labels: names of the classes, or of a tagger's tags, in order.
        pad_id: id of the padding token.
        tokenizer_path: the tokenizer's folder, for the models that read it.
        max_length: longest text in tokens, for models with a limit.
        heads: the heads of a multi-task model, by task; see `MultiTask`. Such a model has no labels of its own.
        privileged: types of the annotations, for a tagger that reads annotations.

    Raises:
        InputError: naming the recipe's key; see `transformer.build_classifier`.
    """
    if isinstance(spec, EncoderSpec):
        made_of: dict[str, Any] = {"vocabulary": vocabulary, "labels": labels, "pad_id": pad_id}
        return in_own_memory(own.builder(spec)(spec, **made_of, tokenizer_path=tokenizer_path, max_length=max_length))
    model_type = own.PREFIX + spec.type
    shape = spec.model_dump(exclude={"type", "vectors", "classifier"})
    if spec.reads_privileged:
        shape["privileged"] = {**shape["privileged"], "types": list(privileged or ())}
    encoder = None
    if spec.transformer is not None:
        home = own.transformer()
        encoder = home.build_encoder(
            spec.transformer,
            vocabulary=vocabulary,
            pad_id=pad_id,
            max_length=max_length,
            pooler=own.reads_pooler(model_type),
        )
        shape["encoder"] = home.encoder_config(encoder)
    if heads is not None:
        shape["heads"] = heads
    # Required arguments of the constructor that the section does not have are None.
    shape |= {name: None for name in own.takes(model_type) if name not in own.COMMON and name not in shape}
    if "separator_id" in shape:
        shape["separator_id"] = _tokenizer(tokenizer_path).sep_token_id
    config = own.new_config(model_type, shape, vocabulary=vocabulary, labels=labels, pad_id=pad_id)
    try:
        made = own.from_config(config, encoder)
    except ValueError as error:  # a fusion, or an exit, of layers that a pretrained encoder does not have
        raise InputError(f"model.{error}") from None
    if getattr(spec, "vectors", None):
        known = _tokenizer(tokenizer_path).get_vocab()
        fill_embedding(made.embedding, resolve_path(spec.vectors), known)  # type: ignore[attr-defined]
    return made if encoder is None else in_own_memory(made)


def _tokenizer(path: Path | None) -> PreTrainedTokenizerFast:
    if path is None:
        raise ValueError("tokenizer_path: this model reads it")
    return load_tokenizer(path)


def embedding_of(model: nn.Module) -> nn.Module:
    """The embedding module of any model of the package: int64 token ids [B, L] -> token vectors [B, L, E].

    Raises:
        TypeError: the model has no known embedding module.
    """
    for holder in (model, getattr(model, "encoder", None)):
        get: Callable[[], nn.Module] | None = getattr(holder, "get_input_embeddings", None)
        if get is not None:
            return get()
    embedding = getattr(model, "embedding", None)
    if not isinstance(embedding, nn.Module):
        raise TypeError(f"{type(model).__name__}: has no word embedding that is known")
    return embedding

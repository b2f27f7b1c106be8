"""Classifiers: modules that know nothing of ranks or losses, built from a recipe or loaded from a folder.

Every model is called `model(input_ids=, attention_mask=, token_type_ids=None)` with int64 [B, L] and returns
something with `.logits` [B, C].
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dtrain.models import own
from dtrain.models.folder import in_own_memory, load, parameter_count, save_model, weights_fingerprint
from dtrain.models.output import ClassifierOutput
from dtrain.recipe.schema import EncoderSpec, ModelSpec

__all__ = ["ClassifierOutput", "build", "load", "parameter_count", "save_model", "weights_fingerprint"]


def build(
    spec: ModelSpec,
    *,
    vocabulary: int,
    labels: list[str],
    pad_id: int,
    tokenizer_path: Path | None = None,
    max_length: int | None = None,
) -> nn.Module:
    """A new classifier in training mode on the CPU, a function of its arguments and torch's generator.

    Args:
        spec: the recipe's `model` section.
        vocabulary: number of token ids of the tokenizer.
        labels: names of the classes in order.
        pad_id: id of the padding token.
        tokenizer_path: the tokenizer's folder, for the models that read it.
        max_length: longest text in tokens, for models with a limit.

    Raises:
        InputError: naming the recipe's key; see `transformer.build_encoder`.
    """
    if isinstance(spec, EncoderSpec):
        from dtrain.models.transformer import build_encoder  # transformers takes 0.6 s; students need none of it

        model = build_encoder(spec, vocabulary=vocabulary, labels=labels, pad_id=pad_id, max_length=max_length)
        return in_own_memory(model)
    shape = spec.model_dump(exclude={"type"})
    config = own.new_config(f"dtrain-{spec.type}", shape, vocabulary=vocabulary, labels=labels, pad_id=pad_id)
    return own.from_config(config)

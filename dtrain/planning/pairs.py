"""Encoder-decoders on fake tensors: parameters, and activations of a step with targets as long as the sources.

Parameters are those of the model with all of its layers. Activations of a deep model are extrapolated from models of 2
and 4 layers, as for encoders, with a slope for the layers of the encoder and another for those of the decoder.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig

from dtrain.planning.trial import LAYERS, ROWS, Activations, Shape, lines_through, step_peaks
from dtrain.recipe.models import EncoderSpec

# Without dropout of attention: with it, a CPU keeps the attention's probabilities, which a GPU does not.
AS_TRAINED: dict[str, Any] = {"attention_dropout": 0.0, "use_cache": False}
TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 2,
    "decoder_start_token_id": 2,
    "eos_token_id": 3,
    "forced_eos_token_id": 3,
}


def pair_config(encoder: EncoderSpec, vocabulary: int, length: int) -> tuple[PreTrainedConfig, list[str]]:
    """The configuration of an encoder-decoder, and what was assumed.

    Args:
        vocabulary: size of the vocabulary of a model from scratch, or of each of its two vocabularies.
        length: tokens of the longest rows.
    """
    assumed: list[str] = []
    if encoder.pretrained:
        try:
            config = AutoConfig.from_pretrained(str(encoder.source), local_files_only=True, trust_remote_code=False)
            config.update(AS_TRAINED)
            return config, []
        except (OSError, ValueError):
            assumed.append(f"{encoder.source} is not here: the shape of `size: base`")
            encoder = type(encoder).model_validate({"type": encoder.type, "size": "base"})
    values = encoder.config() | AS_TRAINED | TOKENS | {"vocab_size": vocabulary}
    if getattr(encoder, "two_vocabularies", False):
        values |= {"decoder_vocab_size": vocabulary, "share_encoder_decoder_embeddings": False}
    return AutoConfig.for_model(values.pop("model_type"), max_position_embeddings=max(512, length), **values), assumed


def pair_shape(config: PreTrainedConfig) -> Shape:
    """The sizes of an encoder-decoder; its `block` is the mean of its layers."""
    with FakeTensorMode():
        model = _model(config)
    layers = [layer for stack in (model.get_encoder(), model.get_decoder()) for layer in stack.layers]
    sizes = [parameter.numel() for parameter in model.parameters()]
    inside = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    return Shape(sum(sizes), len(sizes), len(layers), round(inside / len(layers)), max(sizes))


def pair_activations(config: PreTrainedConfig, length: int, precision: str, checkpointing: bool) -> Activations:
    """The activations of an encoder-decoder, over rows of `length` tokens on either side."""
    lines = functools.partial(_lines, config, length=length, precision=precision, checkpointing=checkpointing)
    layers = config.encoder_layers, config.decoder_layers
    few, more = LAYERS
    trials = (few, few), (more, few), (few, more)
    if sum(layers) <= sum(map(sum, trials)):  # the trials would take longer than the model itself
        return Activations(lines(layers), "tracked")
    small, longer_encoder, longer_decoder = (np.array(lines(each)) for each in trials)
    steps = [(whole - few) / (more - few) for whole in layers]
    found = small + (longer_encoder - small) * steps[0] + (longer_decoder - small) * steps[1]
    return Activations(tuple((float(a_row), float(fixed)) for a_row, fixed in found), "tracked")


def _lines(
    config: PreTrainedConfig, layers: tuple[int, int], *, length: int, precision: str, checkpointing: bool
) -> tuple[tuple[float, float], ...]:
    """Bytes of each pass by rows (see `Activations`), of the model with this many layers of encoder and decoder."""
    own = copy.deepcopy(config)
    own.encoder_layers, own.decoder_layers = layers

    def make() -> nn.Module:
        model = _model(own)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def ask(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        # The mask is left out, as transformers would read its values.
        logits: Tensor = model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
        return logits.flatten(0, 1)

    peaks = functools.partial(step_peaks, make, length=length, precision=precision, ask=ask)
    return lines_through(*(peaks(rows=rows) for rows in ROWS))


def _model(config: PreTrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)

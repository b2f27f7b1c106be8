"""Capturing what a transformer computes inside: states, queries, keys and values of its layers, by forward hooks.

    with taking(model, ["hidden_states/3", "queries/6"]) as taken:
        output = model(**inputs)
    taken()  # {"hidden_states/3": [B, N, H], "queries/6": [B, heads, N, d]}

Attention itself is unchanged, fused where it was; only attention scores are computed a second time, for the layers that
are asked for. Hooks exist for one call: what activation checkpointing recomputes in the backward pass is not captured.
They are on the inner modules, so DDP, FSDP2 or ZeRO may wrap the model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.data.batch import ByName
from dtrain.knowledge.kinds import layer_of
from dtrain.losses.layers import EncoderShape

PROJECTIONS = {"queries": ("query",), "keys": ("key",), "values": ("value",), "attention_scores": ("query", "key")}


def trunks(model: nn.Module) -> Iterator[Any]:
    """The transformers in a model: modules with embeddings and a stack of layers that are built like BERT's."""
    for module in model.modules():
        layers = getattr(getattr(module, "encoder", None), "layer", None)
        if not isinstance(layers, nn.ModuleList) or not isinstance(getattr(module, "embeddings", None), nn.Module):
            continue
        if all(hasattr(getattr(getattr(layer, "attention", None), "self", None), "query") for layer in layers):
            yield module


def trunk_of(model: nn.Module) -> Any:
    """The first transformer in a model; None where there is none."""
    return next(trunks(model), None)


def shape_of(model: nn.Module) -> EncoderShape | None:
    """The shape of the transformer in a model; None where there is none."""
    trunk = trunk_of(model)
    if trunk is None:
        return None
    return EncoderShape(trunk.config.hidden_size, len(trunk.encoder.layer), trunk.config.num_attention_heads)


@contextlib.contextmanager
def taking(model: nn.Module, names: Iterable[str]) -> Iterator[Callable[[], ByName]]:
    """A context for one call of `model`. It gives a function that returns the requested outputs after the call.

    Args:
        names: of outputs, as `at_layer` makes them; the function returns them by these names.

    Raises:
        ValueError: the model has no transformer or no such layer. The function raises it where a layer was not called,
            or was called more than once.
    """
    asked = {name: layer_of(name) for name in sorted(names)}
    trunk = trunk_of(model) if asked else None
    places: dict[tuple[int, str], nn.Module] = {}
    for name, found in asked.items():
        try:
            places |= _places(trunk, found)
        except LookupError:
            raise ValueError(f"{type(model).__name__}: has no {name}") from None
    taken: dict[tuple[int, str], list[Tensor]] = {}

    def keeper(place: tuple[int, str]) -> Callable[..., None]:
        def keep(_: nn.Module, args: Any, output: Any) -> None:
            taken.setdefault(place, []).append(output if isinstance(output, Tensor) else output[0])

        return keep

    def outputs() -> ByName:
        for layer, part in places:
            times = len(taken.get((layer, part), []))
            if times != 1:
                raise ValueError(f"{type(model).__name__}: layer {layer} was called {times} times in one pass")
        return {name: _output(trunk, taken, *found) for name, found in asked.items() if found is not None}

    handles = [module.register_forward_hook(keeper(place)) for place, module in places.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """A context for one call of `model` whose gradient can itself be differentiated.

    Fused attention has no second derivative, nor has NEZHA's banded attention; the eager form of either has one.
    """
    trunk = trunk_of(model)
    before = trunk.config._attn_implementation
    trunk.config._attn_implementation = "eager"
    try:
        yield
    finally:
        trunk.config._attn_implementation = before


@contextlib.contextmanager
def from_embeddings(model: nn.Module) -> Iterator[list[Tensor]]:
    """A context for one call of `model` that can be differentiated with respect to the output of its embeddings.

    The graph begins at that output: the embeddings' own parameters get no gradient.

    Yields:
        A list; after the call it holds that output, [B, N, H].
    """
    found: list[Tensor] = []

    def begin(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    handle = trunk_of(model).embeddings.register_forward_hook(begin)
    try:
        yield found
    finally:
        handle.remove()


def _places(trunk: Any, asked: tuple[str, int] | None) -> dict[tuple[int, str], nn.Module]:
    """The modules whose outputs are captured, by layer and part; LookupError where the model has no such output."""
    if trunk is None or asked is None:
        raise LookupError
    kind, layer = asked
    if kind in PROJECTIONS and layer:
        attention = trunk.encoder.layer[layer - 1].attention.self
        return {(layer, part): getattr(attention, part) for part in PROJECTIONS[kind]}
    if kind not in ("embeddings", "hidden_states"):
        raise LookupError
    return {(layer, "state"): trunk.encoder.layer[layer - 1] if layer else trunk.embeddings}


def _output(trunk: Any, taken: dict[tuple[int, str], list[Tensor]], kind: str, layer: int) -> Tensor:
    if kind not in PROJECTIONS:
        return taken[layer, "state"][0]
    by_head = [_by_head(taken[layer, part][0], trunk.config.num_attention_heads) for part in PROJECTIONS[kind]]
    if kind != "attention_scores":
        return by_head[0]
    query, key = by_head
    attention = trunk.encoder.layer[layer - 1].attention.self
    own: Callable[[Tensor, Tensor], Tensor] = getattr(attention, "scores", _scores)
    with torch.autocast(query.device.type, enabled=False):
        return own(_at_least_float32(query), _at_least_float32(key))


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """[B, heads, N, d] twice -> [B, heads, N, N], scaled, before mask and softmax."""
    return query @ key.transpose(-1, -2) / math.sqrt(query.size(-1))


def _by_head(projected: Tensor, heads: int) -> Tensor:
    """[B, N, H] -> [B, heads, N, H / heads]."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

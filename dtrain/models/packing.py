"""On a CPU, transformers are trained without products of padding, which is a third of a batch of titles.

Most of a training step on a CPU is matrix products (tests/benchmarks/padding_speed.py measures their share). Here each
linear map of a transformer's layers reads the tokens alone, and its results are put back in their places, with zeros at
the padding. Everything else sees whole batches: attention, dropout (the same numbers are drawn), losses on hidden
states, hooks. No loss reads values at padding, so gradients are the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtrain.models.inside import trunks

# Padding is left out where at most this share of positions holds a token: copying tokens out and back takes a few
# hundredths of a step, which must be saved.
WORTH = 0.95
# Encoders whose layers mix tokens in attention and nowhere else. A ConvBERT's convolutions would read the padding.
TYPES = frozenset({"bert", "nezha", "roberta", "xlm-roberta", "electra"})


def skip_padding(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the linear maps of the transformers in `model` leave out padding while it is trained, on a CPU.

    On a GPU nothing changes, since the host would have to wait for the GPU to count the tokens of each batch. Nor does
    anything change for a pass without gradients, whose batches are sorted by length; for activation checkpointing, which
    computes the layers again in the backward pass; and for architectures that `TYPES` does not name.

    Args:
        model: as the engine wraps it; its transformers get forward hooks.
        device: where it is trained.

    Returns:
        the same model.
    """
    if device.type == "cpu":
        for trunk in trunks(model):
            if trunk.config.model_type not in TYPES:
                continue
            packing = _Packing()
            trunk.register_forward_pre_hook(packing.begin, with_kwargs=True)
            trunk.register_forward_hook(packing.end, always_call=True)
            inner = {layer.intermediate.dense for layer in trunk.encoder.layer}
            for module in trunk.encoder.layer.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_pre_hook(packing.narrow)
                    if module not in inner:  # an inner one's output is read only by the next map, as tokens
                        module.register_forward_hook(packing.widen)
    return model


class _Packing:
    """The positions of tokens in a transformer's current call, and the hooks that use them."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # int64 [T], positions in the flattened [B * L]
        self.shape = (0, 0)  # B, L
        # The last input [B, L, H] and its tokens [T, H]: the maps of queries, keys and values read the same input.
        self.last: tuple[Tensor, Tensor] | None = None

    def begin(self, trunk: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is None or mask.dim() != 2 or not trunk.training or not torch.is_grad_enabled():
            return
        if any(getattr(layer, "gradient_checkpointing", False) for layer in trunk.encoder.layer):
            return
        rows = mask.flatten().nonzero().squeeze(1)
        if 0 < len(rows) <= WORTH * mask.numel():
            self.rows, self.shape = rows, tuple(mask.shape)

    def end(self, trunk: Any, args: Any, output: Any) -> None:
        self.rows = self.last = None

    def narrow(self, linear: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if self.rows is None or args[0].shape[:-1] != self.shape:
            return None
        if self.last is None or self.last[0] is not args[0]:
            self.last = args[0], _Narrow.apply(args[0].flatten(0, 1), self.rows)
        return (self.last[1],)

    def widen(self, linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.rows is None or args[0].shape[:-1] != self.rows.shape:
            return None
        return _Widen.apply(output, self.rows, self.shape[0] * self.shape[1]).unflatten(0, self.shape)


class _Narrow(torch.autograd.Function):
    """[N, H] and T different rows -> [T, H]. `index_select` would add up gradients row by row."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(states)
        return states.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Widen.apply(gradients[0], *ctx.saved_tensors, ctx.count), None


class _Widen(torch.autograd.Function):
    """[T, H] and T different rows of N -> [N, H], zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(rows)
        return states.new_zeros(count, states.shape[1]).index_copy_(0, rows, states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Narrow.apply(gradients[0], *ctx.saved_tensors), None, None

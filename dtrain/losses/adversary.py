"""What adversarial losses share: a discriminator, and the reversal of gradients.

A discriminator learns to tell two kinds of features apart, and the model that computes the features learns to make that
hard. One optimizer does both if the gradient of the discriminator's loss is reversed between the two (Ganin and
Lempitsky 2015, 1409.7495):

    features ── reverse_gradient ──▶ discriminator ──▶ loss
       ◀── -factor x dloss/dfeatures ──┘    ◀── +dloss/dweights
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def reverse_gradient(values: Tensor, factor: float = 1.0) -> Tensor:
    """`values` unchanged; their gradient is multiplied by -`factor` in the backward pass."""
    turned: Tensor = _Reversed.apply(values, factor)
    return turned


class Discriminator(nn.Module):
    """h = W_h tanh(W_x f + b_x) + b_h, of which sigmoid(h) is the probability of one of two kinds, for a feature f.

    It computes in float32 (float64 stays), also under autocast and where an engine keeps weights in 16 bits: near 0 and
    1, the gradient of a sigmoid is too small for half precision.

    Args:
        width: length of a feature.
        hidden: number of hidden units.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = _InFull(width, hidden)
        self.answer = _InFull(hidden, 1)

    def forward(self, features: Tensor, fixed: bool = False) -> Tensor:
        """[..., width] of any float type -> h [...], float32 or float64; `fixed`: no gradient reaches its weights."""
        return self.answer(self.hidden(features, fixed).tanh(), fixed).squeeze(-1)


class Balanced(Discriminator):
    """A discriminator with a weight for the rows of each of the two kinds.

    Args:
        balance: the weight of a row of the kind whose h should be negative, and of a row of the other kind.
    """

    def __init__(self, width: int, hidden: int, balance: tuple[float, float]) -> None:
        super().__init__(width, hidden)
        self.balance = balance


class _InFull(nn.Linear):
    """A linear layer in float32 at least, whatever its weights are kept in."""

    def forward(self, input: Tensor, fixed: bool = False) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        # Detached inside this call, for which engines that shard parameters gather them.
        weight, bias = (self.weight.detach(), self.bias.detach()) if fixed else (self.weight, self.bias)
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.to(dtype), weight.to(dtype), bias.to(dtype))


class _Reversed(torch.autograd.Function):
    """The identity, with a gradient of -factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, factor: float) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None

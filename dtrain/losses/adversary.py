"""What adversarial losses share: a discriminator, and a gradient that is turned round on its way back.

A discriminator learns to tell two kinds of features apart, and what computes the features learns to make that hard. One
optimizer does both where the gradient of the discriminator's loss is reversed between the two (Ganin and Lempitsky 2015,
1409.7495, section 3.1):

    features ── reverse_gradient ──▶ discriminator ──▶ loss
       ◀── -factor x dloss/dfeatures ──┘    ◀── +dloss/dweights
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def reverse_gradient(values: Tensor, factor: float = 1.0) -> Tensor:
    """`values`, bit for bit; a gradient that comes back is multiplied by -`factor`."""
    turned: Tensor = _Reversed.apply(values, factor)
    return turned


class Discriminator(nn.Module):
    """h = W_h tanh(W_x f + b_x) + b_h, of which sigmoid(h) is the probability of one of two kinds, for a feature f.

    It computes in float32 (float64 stays), under autocast too and where an engine keeps weights in 16 bits: a sigmoid
    near 0 or 1 has its gradient in digits that half precision does not have.

    Args:
        width: length of a feature.
        hidden: of what the tanh is taken of.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = _InFull(width, hidden)
        self.answer = _InFull(hidden, 1)

    def forward(self, features: Tensor, fixed: bool = False) -> Tensor:
        """[..., width] of any float type -> h [...], float32 or float64; `fixed`: no gradient reaches its weights."""
        return self.answer(self.hidden(features, fixed).tanh(), fixed).squeeze(-1)


class Balanced(Discriminator):
    """One that counts rows of two kinds by weights of their own.

    Args:
        balance: the weight of a row of the kind whose h is to be below 0, and of the other.
    """

    def __init__(self, width: int, hidden: int, balance: tuple[float, float]) -> None:
        super().__init__(width, hidden)
        self.balance = balance


class _InFull(nn.Linear):
    """A linear layer in float32 at least, whatever its weights are kept in."""

    def forward(self, input: Tensor, fixed: bool = False) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(input.dtype, self.weight.dtype), torch.float32)
        # Taken off the graph here, where engines that cut parameters up have put them together.
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

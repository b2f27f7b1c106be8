"""The layers that stacked models are made of. A member's numbers do not depend on the other members of the stack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# How a batched product rounds may depend on where a matrix begins in memory: on a CPU with AVX-512, MKL's rounded
# differently for matrices that did not begin at a multiple of 64 bytes (32 elements of two bytes). Where a member's
# matrix begins depends on how many come before it, unless each has a multiple of this many elements.
ALIGNED = 32


def embed_each(table: Tensor, ids: Tensor) -> Tensor:
    """Each member's vectors of the same tokens.

    Args:
        table: [K, V, E], contiguous.
        ids: int64 [B, L].

    Returns:
        [K, B, L, E].
    """
    members, size, _ = table.shape
    first = torch.arange(members, device=ids.device) * size
    return functional.embedding(ids + first[:, None, None], table.flatten(0, 1))


def linear_each(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer for each member: [K, N, I], [K, O, I], [K, O] -> [K, N, O]."""
    rows = inputs.shape[1]
    more = rows_to_align(rows, inputs.shape[2], weight.shape[1])
    if more:
        inputs = functional.pad(inputs, (0, 0, 0, more))
    return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))[:, :rows]


def rows_to_align(rows: int, *widths: int) -> int:
    """How many rows to add to `rows`, so that matrices of all these widths have a multiple of `ALIGNED` elements."""
    multiple = ALIGNED // math.gcd(ALIGNED, *widths)
    return -rows % multiple


def dropout_each(features: Tensor, rates: Sequence[float], random: Sequence[torch.Generator]) -> Tensor:
    """Dropout of [K, ...], each member with its rate and generator; on a CPU the masks are those of `nn.Dropout`."""
    if not any(rates):
        return features
    kept = torch.ones_like(features)
    for mask, rate, generator in zip(kept, rates, random, strict=True):
        if rate:
            mask.bernoulli_(1.0 - rate, generator=generator).div_(1.0 - rate)
    return features * kept

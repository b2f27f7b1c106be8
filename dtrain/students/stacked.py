"""The layers that stacked models are made of. A member's numbers do not depend on who else is in the stack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# A batched product may round otherwise by where a matrix begins in memory: on a CPU with AVX-512, MKL's did so for
# matrices that did not begin at a multiple of 64 bytes, 32 numbers of two bytes. Where a member's matrix begins depends
# on how many stand before it, unless each has a multiple of this many numbers.
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
    """[K, N, I], [K, O, I], [K, O] -> [K, N, O]."""
    rows = inputs.shape[1]
    more = rows_to_align(rows, inputs.shape[2], weight.shape[1])
    if more:
        inputs = functional.pad(inputs, (0, 0, 0, more))
    return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))[:, :rows]


def rows_to_align(rows: int, *widths: int) -> int:
    """How many rows to add, so that matrices of so many rows and each of these widths begin alike for every member."""
    multiple = ALIGNED // math.gcd(ALIGNED, *widths)
    return -rows % multiple


def dropout_each(features: Tensor, rates: Sequence[float], random: Sequence[torch.Generator]) -> Tensor:
    """Drop out of [K, ...] by a rate and a generator a member; on a CPU the masks are those of `nn.Dropout`."""
    if not any(rates):
        return features
    kept = torch.ones_like(features)
    for mask, rate, generator in zip(kept, rates, random, strict=True):
        if rate:
            mask.bernoulli_(1.0 - rate, generator=generator).div_(1.0 - rate)
    return features * kept

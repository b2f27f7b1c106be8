"""Weights of variational information distillation: for each pair of layers, a regressor and its errors' variances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Regressors(nn.Module):
    """mu(s) and alpha of q(t | s) = N(t; mu(s), softplus(alpha) + floor), for each pair of layers (1904.05835, eq. 5 and 6).

    mu has two layers with a ReLU between, alpha one number per channel.

    Args:
        student: width of the student's states.
        teacher: width of the teacher's.
        pairs: how many pairs of layers are compared.
        variance: the initial variance of every channel.
        floor: the least variance.
    """

    def __init__(self, student: int, teacher: int, pairs: int, *, variance: float, floor: float) -> None:
        super().__init__()
        self.means = nn.ModuleList(
            nn.Sequential(nn.Linear(student, teacher), nn.ReLU(), nn.Linear(teacher, teacher)) for _ in range(pairs)
        )
        # softplus(alpha) = variance - floor; exp(variance) itself would overflow from 710 on
        rest = max(variance - floor, floor)
        alpha = rest + math.log(-math.expm1(-rest))
        self.spreads = nn.ModuleList(_Spread(teacher, alpha) for _ in range(pairs))

    def forward(self, states: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """[B, N, student] for each pair -> mu [B, N, teacher] and alpha [teacher]."""
        dtype = next(self.parameters()).dtype
        return [
            (mean(state.to(dtype)), spread())
            for mean, spread, state in zip(self.means, self.spreads, states, strict=True)
        ]


class _Spread(nn.Module):
    """alpha, as a module with a call of its own: engines that shard parameters gather them for a call."""

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((channels,), alpha))

    def forward(self) -> Tensor:
        return self.alpha * 1

"""Formulas of losses on the states of one layer of a student and one of its teacher: one value per row, [B].

Each is the mean over a row's unpadded tokens. The student's states have the teacher's width: a trained linear map stands
before the formula where the models' widths differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtrain.losses.over_tokens import computed_in_full, mean_over_tokens
from dtrain.losses.torch_later import functional

if TYPE_CHECKING:
    from torch import Tensor


@computed_in_full
def squared_difference(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """mean_i 1/H ||h_t,i - h_s,i||^2 over unpadded tokens i: [B, N, H] twice, bool [B, N] -> [B]."""
    return mean_over_tokens((student - teacher).square().mean(-1), mask)


@computed_in_full
def angle(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """mean_i (1 - cos(h_t,i, h_s,i)) over unpadded tokens i: [B, N, H] twice, bool [B, N] -> [B]."""
    return mean_over_tokens(1 - functional.cosine_similarity(student, teacher, dim=-1), mask)


@computed_in_full
def hint(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """mean_i 1/2 ||h_t,i - h_s,i||^2 over unpadded tokens i, the *sum* over channels: [B, N, H] twice -> [B]."""
    return mean_over_tokens((student - teacher).square().sum(-1) / 2, mask)


@computed_in_full
def gaussian(mean: Tensor, spread: Tensor, teacher: Tensor, mask: Tensor, floor: float) -> Tensor:
    """mean_i sum_c [log sigma_c + (t_ic - mu_ic)^2 / (2 sigma_c^2)] with sigma_c^2 = softplus(alpha_c) + floor.

    Args:
        mean: float [B, N, C], mu.
        spread: float [C], alpha.
        teacher: float [B, N, C], t.
        mask: bool [B, N].
        floor: the least variance.
    """
    variance = functional.softplus(spread) + floor
    values = variance.log() / 2 + (teacher - mean).square() / (2 * variance)
    return mean_over_tokens(values.sum(-1), mask)

"""Formulas of losses on relations: between tokens of a row, channels and layers. One value per row, [B]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dtrain.losses.over_tokens import (
    computed_in_full,
    divergence_over_keys,
    mean_over_pairs,
    without_padding,
)
from dtrain.losses.torch_later import functional, torch

if TYPE_CHECKING:
    from torch import Tensor


@computed_in_full
def scores_difference(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean over heads and pairs of unpadded tokens of (e_t,ij - e_s,ij)^2: [B, A, N, N] twice -> [B].

    `e` are the scores q_i k_j / sqrt(d) before the softmax, without the mask's large negative numbers.
    """
    return mean_over_pairs((student - teacher).square(), mask)


@computed_in_full
def attention_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean over heads and unpadded queries i of KL(softmax(e_t,i) || softmax(e_s,i)) over unpadded keys.

    Args:
        student, teacher: float [B, A, N, N], scores before the softmax.
        mask: bool [B, N].
    """
    return divergence_over_keys(student, teacher, mask)


@computed_in_full
def relation_divergence(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """The mean over heads and unpadded tokens i of KL(R_t,i || R_s,i), R = softmax(X X^T / sqrt(d)) of each head.

    The concatenated heads are split again into `heads` heads, of a width d that may differ between the models: neither
    widths nor numbers of attention heads have to agree.

    Args:
        student, teacher: float [B, N, Hs] and [B, N, Ht], concatenated queries, keys or values of all heads.
        mask: bool [B, N].
        heads: divides Hs and Ht.
    """
    return divergence_over_keys(_related(student, mask, heads), _related(teacher, mask, heads), mask)


def _related(states: Tensor, mask: Tensor, heads: int) -> Tensor:
    """x_i x_j / sqrt(d) of each head: [B, N, H] -> [B, heads, N, N]."""
    cut = without_padding(states, mask).unflatten(-1, (heads, -1)).transpose(1, 2)
    return cut @ cut.transpose(-1, -2) / math.sqrt(cut.shape[-1])


@computed_in_full
def activation_maps(student: Tensor, teacher: Tensor, mask: Tensor, power: float) -> Tensor:
    """|| Q_s / ||Q_s|| - Q_t / ||Q_t|| ||_2 with Q_i = sum_c |A_ic|^power, over a row's unpadded tokens i.

    Maps less than 1e-6 apart, which is 10 times what float32 rounds, count as equal: the gradient of a norm has length 1
    however small the norm is, so it would be rounding noise.

    Args:
        student, teacher: float [B, N, Hs] and [B, N, Ht].
        mask: bool [B, N].
        power: over 0.
    """

    def normed(states: Tensor) -> Tensor:
        sums = without_padding(states, mask).abs().pow(power).sum(-1)
        return functional.normalize(sums, dim=1)

    squares = (normed(student) - normed(teacher)).square().sum(1)
    apart = squares > 1e-12
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


@computed_in_full
def gradient_difference(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """|| g_s - g_t ||_2 over a row's unpadded tokens and channels: [B, N, H] twice, bool [B, N] -> [B]."""
    return torch.linalg.vector_norm(without_padding(student - teacher, mask), dim=(1, 2))


@computed_in_full
def flow_difference(
    student_from: Tensor, student_to: Tensor, teacher_from: Tensor, teacher_to: Tensor, mask: Tensor
) -> Tensor:
    """The mean over m x n of (G_t - G_s)^2 with G = F1^T F2 / L, over the row's L unpadded tokens.

    Args:
        student_from, teacher_from: float [B, N, m], states F1 of the earlier layers.
        student_to, teacher_to: float [B, N, n], states F2 of the later ones.
        mask: bool [B, N].
    """
    counts = mask.sum(1).clamp(min=1)[:, None, None]

    def flow(earlier: Tensor, later: Tensor) -> Tensor:
        return without_padding(earlier, mask).transpose(1, 2) @ without_padding(later, mask) / counts

    return (flow(student_from, student_to) - flow(teacher_from, teacher_to)).square().mean((1, 2))

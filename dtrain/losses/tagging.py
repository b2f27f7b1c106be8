"""Losses on a tagger's outputs: one value per row, [B], a sum over the row's characters.

The caller divides by the number of characters of the global batch, so every loss is a mean over unpadded
characters. Computed in float32 (float64 stays), also under autocast. Recipes are checked against the signatures
without importing torch (see torch_later.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtrain.losses.outputs import full_precision
from dtrain.losses.registry import register
from dtrain.losses.torch_later import torch

if TYPE_CHECKING:
    from torch import Tensor


@register("nll")
def tag_likelihood(nll: Tensor) -> Tensor:
    """-log p(gold tags | text): of the CRF over whole sequences, or of each character's softmax (Lample 1603.01360).

    Args:
        nll: float [B], summed over characters.

    Returns:
        float [B].
    """
    return full_precision(nll)


@register("emissions", "mask", "teachers.emissions")
def emission_regression(emissions: Tensor, mask: Tensor, teacher_emissions: Tensor) -> Tensor:
    """sum_i ||e_t,i - e_s,i||^2 over a row's characters i, the *sum* over tags.

    Emissions are compared after their mean over tags is subtracted at each character: a constant that is added to all
    tags of a character does not change a CRF's likelihood. With several teachers, the mean of their emissions is the
    target.

    Args:
        emissions: float [B, N, T].
        mask: bool [B, N].
        teacher_emissions: float [B, N, T], or [K, B, N, T] of K teachers.

    Returns:
        float [B].
    """
    teacher = full_precision(teacher_emissions)
    if teacher.dim() == 4:
        teacher = teacher.mean(0)
    difference = full_precision(emissions) - teacher
    difference = difference - difference.mean(-1, keepdim=True)
    return difference.square().sum(-1).masked_fill(~mask, 0.0).sum(-1)


@register("marginals", "mask", "teachers.marginals")
def marginal_matching(marginals: Tensor, mask: Tensor, teacher_marginals: Tensor) -> Tensor:
    """sum_i KL(p_t(tag_i | x) || p_s(tag_i | x)) over a row's characters i (posterior distillation, Wang 2020.acl-main.304).

    With several teachers, the mean of their marginals is the target.

    Args:
        marginals: float [B, N, T], the student's log-probabilities.
        mask: bool [B, N].
        teacher_marginals: float [B, N, T] probabilities, or [K, B, N, T] of K teachers.

    Returns:
        float [B].
    """
    teacher = full_precision(teacher_marginals)
    if teacher.dim() == 4:
        teacher = teacher.mean(0)
    # Where the target is 0 the term is 0 by xlogy, and the student's log-probability may be anything finite.
    student = full_precision(marginals)
    divergence = (torch.xlogy(teacher, teacher) - teacher * student).sum(-1)
    return divergence.masked_fill(~mask, 0.0).sum(-1)

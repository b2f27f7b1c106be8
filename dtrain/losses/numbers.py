"""Losses on a model's number, the one column of its logits: values a row [B].

A teacher's number is learnt by `logit_regression`, which for one column is the square of the difference. Half-precision
numbers are computed with in float32. Recipes are checked against their signatures, for which torch is not imported (see
torch_later.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dtrain.losses.outputs import PartOfTraining, full_precision
from dtrain.losses.ramp import part_of_way
from dtrain.losses.registry import register
from dtrain.losses.torch_later import torch

if TYPE_CHECKING:
    from torch import Tensor


@register("logits", "numbers")
def squared_error(student_logits: Tensor, numbers: Tensor) -> Tensor:
    """(z_s - y)^2, z_s the model's number (as GLUE's STS-B is learnt in MT-DNN, Liu et al. 1901.11504, equation 8).

    Args:
        student_logits: float [B, 1].
        numbers: float [B], y; anything where there is none.

    Returns:
        float [B].
    """
    number = full_precision(student_logits)[:, 0]
    return (number - numbers.to(number.dtype)).square()


@register("logits", "numbers", "labelled", "teachers.logits", "progress")
def number_annealing(
    student_logits: Tensor,
    numbers: Tensor,
    labelled: Tensor,
    teacher_logits: Tensor,
    progress: float,
    *,
    until: PartOfTraining = 1.0,
    shape: Literal["linear", "cosine", "step"] = "linear",
) -> Tensor:
    """(z_s - (l y + (1 - l) z_t))^2, l = min(1, progress / until): teacher annealing of numbers (BAM, 1907.04829).

    A row without a number has (1 - l) (z_s - z_t)^2. Of several teachers, the mean of their numbers is the target.

    Args:
        student_logits: float [B, 1].
        numbers: float [B], y; anything where there is none.
        labelled: bool [B].
        teacher_logits: float [B, 1], or [K, B, 1] of K teachers.
        progress: the share of training that is done.
        until: the share at which the row's own number alone is left.
        shape: of l on its way from 0 to 1; BAM's is linear, a step goes there at `until`.

    Returns:
        float [B].
    """
    gold = part_of_way(progress, until, shape)
    number, teacher = full_precision(student_logits)[:, 0], full_precision(teacher_logits)[..., 0]
    if teacher.dim() == 2:
        teacher = teacher.mean(0)
    target = gold * numbers.to(number.dtype) + (1 - gold) * teacher
    mixed, taught = (number - target).square(), (1 - gold) * (number - teacher).square()
    return torch.where(labelled, mixed, taught)

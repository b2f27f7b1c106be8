"""Losses for regression, on the single column of a model's logits: one value per row, [B].

A teacher's number is learnt by `logit_regression`, which for one column is the squared difference. Half-precision
numbers are converted to float32. Recipes are checked against the signatures without importing torch (see
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
    """(z_s - y)^2, z_s the model's number (as MT-DNN learns GLUE's STS-B, Liu et al. 1901.11504, equation 7).

    Args:
        student_logits: float [B, 1].
        numbers: float [B], y; any finite number where there is none.

    Returns:
        float [B].
    """
    number = full_precision(student_logits)[:, 0]
    return (number - numbers.to(number.dtype)).square()


@register("logits", "numbers", "labelled", "teachers.logits", "progress", "taught")
def number_annealing(
    student_logits: Tensor,
    numbers: Tensor,
    labelled: Tensor,
    teacher_logits: Tensor,
    progress: float,
    taught: Tensor | None = None,
    *,
    until: PartOfTraining = 1.0,
    shape: Literal["linear", "cosine", "step"] = "linear",
) -> Tensor:
    """(z_s - (l y + (1 - l) z_t))^2, l = min(1, progress / until): teacher annealing of numbers (BAM, 1907.04829).

    For a row without a number, it is (1 - l) (z_s - z_t)^2; for one that a teacher has not seen, l (z_s - y)^2. With
    several teachers, z_t is the mean of their numbers.

    Args:
        student_logits: float [B, 1].
        numbers: float [B], y; any finite number where there is none.
        labelled: bool [B].
        teacher_logits: float [B, 1], or [K, B, 1] of K teachers.
        progress: the share of training that is done.
        taught: bool [B], whether all teachers have seen the row, as one that reads another language may not have; None:
            they have seen every row.
        until: the share of training after which only the row's own number counts.
        shape: how l goes from 0 to 1: linear (as in BAM), cosine, or a step at `until`.

    Returns:
        float [B].
    """
    gold = part_of_way(progress, until, shape)
    number, teacher = full_precision(student_logits)[:, 0], full_precision(teacher_logits)[..., 0]
    if teacher.dim() == 2:
        teacher = teacher.mean(0)
    own = numbers.to(number.dtype)
    mixed = (number - (gold * own + (1 - gold) * teacher)).square()
    values = torch.where(labelled, mixed, (1 - gold) * (number - teacher).square())
    if taught is None:
        return values
    return torch.where(taught, values, torch.where(labelled, gold * (number - own).square(), 0.0))

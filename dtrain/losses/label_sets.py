"""Losses for rows with any number of labels, each label with a sigmoid of its own: one value per row, [B].

Each is the *mean* over labels, so that its size does not depend on their number. Half-precision logits are converted to
float32. Recipes are checked against the signatures without importing torch (see torch_later.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dtrain.losses.outputs import PartOfTraining, Temperature, full_precision
from dtrain.losses.ramp import part_of_way
from dtrain.losses.registry import register
from dtrain.losses.torch_later import functional, torch

if TYPE_CHECKING:
    from torch import Tensor


@register("logits", "label_sets")
def binary_cross_entropy(student_logits: Tensor, label_sets: Tensor) -> Tensor:
    """The *mean* over labels of -(y log s + (1 - y) log(1 - s)), s = sigmoid(z_s), as torch computes it.

    Args:
        student_logits: float [B, C].
        label_sets: float [B, C], 1 for a label that the row has, else 0.

    Returns:
        float [B].
    """
    logits = full_precision(student_logits)
    values = functional.binary_cross_entropy_with_logits(logits, label_sets.to(logits.dtype), reduction="none")
    return values.mean(-1)


@register("logits", "teachers.logits", logits=("labels",))
def soft_label_sets(student_logits: Tensor, teacher_logits: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """T^2 times the *mean* over labels of KL(p || q), Bernoulli with p = sigmoid(z_t / T) and q = sigmoid(z_s / T).

    Soft targets (Hinton et al. 1503.02531) for each label by itself; T^2 keeps the size of the gradient comparable over
    temperatures. With several teachers, the mean of their p is the target.

    Args:
        student_logits: float [B, C].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.
        temperature: T, which logits are divided by.

    Returns:
        float [B].
    """
    student = full_precision(student_logits) / temperature
    teacher = torch.sigmoid(full_precision(teacher_logits) / temperature)
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    crossed = functional.binary_cross_entropy_with_logits(student, teacher, reduction="none")
    own = torch.xlogy(teacher, teacher) + torch.xlogy(1 - teacher, 1 - teacher)
    return (crossed + own).mean(-1) * temperature**2


@register("logits", "label_sets", "labelled", "teachers.logits", "progress", "taught")
def label_set_annealing(
    student_logits: Tensor,
    label_sets: Tensor,
    labelled: Tensor,
    teacher_logits: Tensor,
    progress: float,
    taught: Tensor | None = None,
    *,
    until: PartOfTraining = 1.0,
    shape: Literal["linear", "cosine", "step"] = "linear",
) -> Tensor:
    """`binary_cross_entropy` with l y + (1 - l) sigmoid(z_t) for y, l = min(1, progress / until) (BAM, 1907.04829).

    For a row without labels, it is (1 - l) times the cross-entropy with sigmoid(z_t); for one that a teacher has not
    seen, l times that with y. With several teachers, the mean of their probabilities is the target.

    Args:
        student_logits: float [B, C].
        label_sets: float [B, C], 1 for a label that the row has, else 0.
        labelled: bool [B].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.
        progress: the share of training that is done.
        taught: bool [B], whether all teachers have seen the row, as one that reads another language may not have; None:
            they have seen every row.
        until: the share of training after which only the row's own labels count.
        shape: how l goes from 0 to 1: linear (as in BAM), cosine, or a step at `until`.

    Returns:
        float [B].
    """
    gold = part_of_way(progress, until, shape)
    student, teacher = full_precision(student_logits), torch.sigmoid(full_precision(teacher_logits))
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    own = label_sets.to(student.dtype)
    # The cross-entropy is linear in its target, so 1 - l is a factor in rows without labels.
    target = torch.where(labelled[:, None], gold * own + (1 - gold) * teacher, teacher)
    if taught is not None:
        target = torch.where(taught[:, None], target, own)
    values = functional.binary_cross_entropy_with_logits(student, target, reduction="none").mean(-1)
    values = torch.where(labelled, values, (1 - gold) * values)
    return values if taught is None else torch.where(taught, values, torch.where(labelled, gold * values, 0.0))

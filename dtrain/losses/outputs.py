"""Losses on a classifier's outputs: per-row values [B], so that sums over global row counts stay exact.

Half-precision logits are computed with in float32, under autocast too; float32 and float64 stay as they are.
Torch is imported inside the functions, because recipes are checked against their signatures without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dtrain.losses.registry import register

if TYPE_CHECKING:
    from torch import Tensor

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


@register("logits", "labels")
def cross_entropy(student_logits: Tensor, labels: Tensor, *, label_smoothing: Smoothing = 0.0) -> Tensor:
    """-sum_c q_c log softmax(z_s)_c with q = (1 - e) onehot(y) + e / C (Szegedy et al. 1512.00567, sec. 7).

    Args:
        student_logits: float [B, C].
        labels: int64 [B], each in [0, C).
        label_smoothing: e.

    Returns:
        float [B].
    """
    from torch.nn import functional

    return functional.cross_entropy(
        full_precision(student_logits), labels, reduction="none", label_smoothing=label_smoothing
    )


@register("logits", "teachers.logits")
def soft_targets(student_logits: Tensor, teacher_logits: Tensor, *, temperature: Temperature = 2.0) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes (Hinton et al. 1503.02531, sec. 2).

    T^2 keeps the size of the gradient comparable over temperatures. Of several teachers, the mean of their
    softened distributions is the target.

    Args:
        student_logits: float [B, C].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.
        temperature: T.

    Returns:
        float [B].
    """
    from torch.nn import functional

    student = functional.log_softmax(full_precision(student_logits) / temperature, dim=-1)
    teacher = functional.softmax(full_precision(teacher_logits) / temperature, dim=-1)
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    return functional.kl_div(student, teacher, reduction="none").sum(-1) * temperature**2


@register("logits", "teachers.logits")
def logit_regression(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """||z_t - z_s||_2^2, the *sum* over classes (Tang et al. 1903.12136, equation 4).

    A mean squared error over rows and classes, as many programs have it, is this with weight 1 / C. Of
    several teachers, the mean of their logits is the target.

    Args:
        student_logits: float [B, C].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.

    Returns:
        float [B].
    """
    teacher = full_precision(teacher_logits)
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    return (full_precision(student_logits) - teacher).square().sum(-1)


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are."""
    import torch

    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

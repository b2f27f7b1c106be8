"""Losses on features, the pooled vector [B, F] that reaches a classifier: one value per row, [B].

Recipes are checked against the signatures without importing torch (see torch_later.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dtrain.errors import InputError
from dtrain.losses.outputs import full_precision
from dtrain.losses.registry import register
from dtrain.losses.torch_later import functional

if TYPE_CHECKING:
    from torch import Tensor

Width = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@register("features", "teachers.features")
def feature_hint(student_features: Tensor, teacher_features: Tensor, *, beta: Width = 1.0) -> Tensor:
    """The *mean* over features of smoothL1(f_t - f_s): d^2 / (2 beta) where |d| < beta, else |d| - beta / 2.

    It is for models of like structure (a BERT-CNN teaches a TextCNN), on the features before the classifier. With
    several teachers, it is the mean of the values.

    Args:
        student_features: float [B, F].
        teacher_features: float [B, F], or [K, B, F] of K teachers.
        beta: the difference at which the loss turns from quadratic to linear.

    Returns:
        float [B].

    Raises:
        InputError: the widths differ.
    """
    student, teacher = _same_width(student_features, teacher_features)
    values = functional.smooth_l1_loss(student.expand_as(teacher), teacher, reduction="none", beta=beta).mean(-1)
    return values.mean(0) if values.dim() == 2 else values


@register("features", "teachers.features")
def feature_cosine(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """1 - cos(f_t, f_s). With several teachers, it is the mean of the values.

    Args:
        student_features: float [B, F].
        teacher_features: float [B, F], or [K, B, F] of K teachers.

    Returns:
        float [B].

    Raises:
        InputError: the widths differ.
    """
    student, teacher = _same_width(student_features, teacher_features)
    values = 1 - functional.cosine_similarity(student.expand_as(teacher), teacher, dim=-1)
    return values.mean(0) if values.dim() == 2 else values


def _same_width(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape[-1] != teacher.shape[-1]:
        raise InputError(
            f"losses: the student has {student.shape[-1]} features and its teacher {teacher.shape[-1]}; hints "
            "compare features of one width (of a textcnn or bert_cnn: filters x number of widths)"
        )
    return full_precision(student), full_precision(teacher)

"""Losses on a classifier's outputs: one value per row, [B], so that sums over global row counts stay exact.

Half-precision logits are converted to float32, also under autocast; float32 and float64 stay as they are.
Recipes are checked against the signatures without importing torch (see torch_later.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dtrain.losses.class_weights import ClassWeights, of_rows
from dtrain.losses.ramp import part_of_way
from dtrain.losses.registry import register
from dtrain.losses.torch_later import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
PartOfTraining = Annotated[float, Field(gt=0, le=1)]
Rank = Annotated[int, Field(ge=2)]


@register("logits", "labels")
def cross_entropy(
    student_logits: Tensor, labels: Tensor, *, label_smoothing: Smoothing = 0.0, class_weights: ClassWeights = None
) -> Tensor:
    """w_y times -sum_c q_c log softmax(z_s)_c with q = (1 - e) onehot(y) + e / C (Szegedy et al. 1512.00567, sec. 7).

    The sum over rows is divided by their number, as every term is, and not by the sum of their weights: so a row counts
    the same in any batch.

    Args:
        student_logits: float [B, C].
        labels: int64 [B], each in [0, C).
        label_smoothing: e, the share of the label that is spread over all classes.
        class_weights: w by label, 1 for labels that are not named; or `balanced`: n / (C n_c) for n labelled training
            rows, n_c of them with label c, and C labels that occur, which is 1 on average over rows; left out: 1.

    Returns:
        float [B].
    """
    values = functional.cross_entropy(
        full_precision(student_logits), labels, reduction="none", label_smoothing=label_smoothing
    )
    return of_rows(class_weights, labels, values)


@register("logits", "teachers.logits", logits=("classes",))
def soft_targets(student_logits: Tensor, teacher_logits: Tensor, *, temperature: Temperature = 2.0) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes (Hinton et al. 1503.02531, sec. 2).

    T^2 keeps the size of the gradient comparable over temperatures. With several teachers, the mean of their
    softened distributions is the target.

    Args:
        student_logits: float [B, C].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.
        temperature: T, which logits are divided by.

    Returns:
        float [B].
    """
    student = functional.log_softmax(full_precision(student_logits) / temperature, dim=-1)
    teacher = functional.softmax(full_precision(teacher_logits) / temperature, dim=-1)
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    return functional.kl_div(student, teacher, reduction="none").sum(-1) * temperature**2


@register("logits", "teachers.logits")
def logit_regression(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """||z_t - z_s||_2^2, the *sum* over classes (Tang et al. 1903.12136, equation 4).

    A mean squared error over rows and classes, as many programs compute it, is this loss with weight 1 / C. For
    regression, C is 1 and z a number. With several teachers, the mean of their logits is the target.

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


@register("logits", "teachers.logits", logits=("classes",))
def reverse_soft_targets(student_logits: Tensor, teacher_logits: Tensor, *, temperature: Temperature = 2.0) -> Tensor:
    """T^2 KL(softmax(z_s / T) || softmax(z_t / T)), summed over classes: the student learns its teacher's modes.

    With several teachers, the mean of their softened distributions is the target.

    Args:
        student_logits: float [B, C].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.
        temperature: T, which logits are divided by.

    Returns:
        float [B].
    """
    student = functional.log_softmax(full_precision(student_logits) / temperature, dim=-1)
    teacher = functional.log_softmax(full_precision(teacher_logits) / temperature, dim=-1)
    if teacher.dim() == 3:
        teacher = teacher.logsumexp(0) - math.log(len(teacher))
    return divergence(student, teacher) * temperature**2


@register("logits", "teachers.logits", logits=("classes",))
def cosine(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 - cos(z_t, z_s): it compares the direction of the logits and not their size.

    With several teachers, z_t is the mean of their logits.

    Args:
        student_logits: float [B, C].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.

    Returns:
        float [B].
    """
    teacher = full_precision(teacher_logits)
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    return 1 - functional.cosine_similarity(full_precision(student_logits), teacher, dim=-1)


@register("logits", "labels", "labelled", "teachers.logits", "progress", "taught")
def teacher_annealing(
    student_logits: Tensor,
    labels: Tensor,
    labelled: Tensor,
    teacher_logits: Tensor,
    progress: float,
    taught: Tensor | None = None,
    *,
    until: PartOfTraining = 1.0,
    shape: Literal["linear", "cosine", "step"] = "linear",
) -> Tensor:
    """-sum_c (l onehot(y) + (1 - l) softmax(z_t))_c log softmax(z_s)_c, l = min(1, progress / until) (BAM, 1907.04829).

    For a row without a label, the part of the gold label is left out, and (1 - l) times that of the teachers remains; for
    one that a teacher has not seen, l times that of the gold label remains.
    With several teachers, the mean of their distributions is the target.

    Args:
        student_logits: float [B, C].
        labels: int64 [B], in [0, C) also where there is no label.
        labelled: bool [B].
        teacher_logits: float [B, C], or [K, B, C] of K teachers.
        progress: the share of training that is done.
        taught: bool [B], whether all teachers have seen the row, as one that reads another language may not have; None:
            they have seen every row.
        until: the share of training after which only the gold label counts.
        shape: how l goes from 0 to 1: linear (as in BAM), cosine, or a step at `until`.

    Returns:
        float [B].
    """
    gold = part_of_way(progress, until, shape)
    student = functional.log_softmax(full_precision(student_logits), dim=-1)
    teacher = functional.softmax(full_precision(teacher_logits), dim=-1)
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    if taught is not None:
        teacher = teacher.masked_fill(~taught[:, None], 0.0)
    own = labelled[:, None] * functional.one_hot(labels, student.shape[-1])
    target = (1 - gold) * teacher + gold * own.to(student.dtype)
    return -(target * student).sum(-1)


@register("logits", logits=("classes",))
def top_gap(student_logits: Tensor, *, k: Rank = 5) -> Tensor:
    """z_(1) - mean(z_(2), ..., z_(k)), the gap after the largest logit (tolerant teacher, Yang et al. AAAI 2019).

    Added to the cross-entropy, it keeps a model from giving all probability to one class. With fewer than k classes,
    all are used.

    Args:
        student_logits: float [B, C].
        k: the number of largest logits that are used, the first included.

    Returns:
        float [B].
    """
    logits = full_precision(student_logits)
    largest = logits.topk(min(k, logits.shape[-1]), dim=-1).values
    return largest[:, 0] - largest[:, 1:].mean(-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, float [..., C] -> [...]; where p is 0, as of a logit of -inf, the term is 0."""
    p = log_p.exp()
    # Filled before it is multiplied: 0 x inf is no number, nor is its gradient.
    return (p * (log_p - log_q).masked_fill_(p == 0, 0.0)).sum(-1)


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def mutual_divergence(student_logits: Tensor, peer_logits: Tensor) -> Tensor:
    """1/(K-1) sum_l KL(softmax(z_l) || softmax(z)) over the K - 1 other peers (Zhang et al. 1706.00384, equation 5).

    Args:
        student_logits: float [B, C].
        peer_logits: float [K - 1, B, C], constants.

    Returns:
        float [B].
    """
    own = functional.log_softmax(full_precision(student_logits), dim=-1)
    others = functional.log_softmax(full_precision(peer_logits), dim=-1)
    return functional.kl_div(own.expand_as(others), others, reduction="none", log_target=True).sum(-1).mean(0)

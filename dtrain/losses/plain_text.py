"""Losses on rows of plain text in a phase of a student: one value per row, [B], a sum over its masked positions.

A row counts as many units as it has masked positions, so that the loss of the global batch is a mean over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dtrain.losses.outputs import full_precision
from dtrain.losses.registry import register
from dtrain.losses.torch_later import functional, torch

if TYPE_CHECKING:
    from torch import Tensor

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@register("vocabulary", "masked_labels", "masked_rows", "labelled")
def mlm(scores: Tensor, masked_labels: Tensor, masked_rows: Tensor, labelled: Tensor) -> Tensor:
    """sum_m -log softmax(z_s)_(w_m) over a row's masked positions m (masked language modelling, Devlin et al. 1810.04805).

    Args:
        scores: float [M, V], the student's at the masked positions.
        masked_labels: int64 [M], the tokens that stood there.
        masked_rows: int64 [M], in which row each position is.
        labelled: bool [B], for the number of rows.

    Returns:
        float [B].
    """
    values = functional.cross_entropy(full_precision(scores), masked_labels, reduction="none")
    return _by_row(values, masked_rows, labelled)


@register("vocabulary", "teachers.vocabulary", "masked_rows", "labelled")
def vocabulary_kl(
    scores: Tensor, teacher_scores: Tensor, masked_rows: Tensor, labelled: Tensor, *, temperature: Temperature = 2.0
) -> Tensor:
    """T^2 sum_m KL(softmax(z_t / T) || softmax(z_s / T)) over a row's masked positions m (DistilBERT, 1910.01108, sec. 2).

    The teacher scores the same masked rows. With several teachers, the mean of their softened
    distributions is the target.

    Args:
        scores: float [M, V], the student's at the masked positions.
        teacher_scores: float [M, V], or [K, M, V] of K teachers.
        masked_rows: int64 [M], in which row each position is.
        labelled: bool [B], for the number of rows.
        temperature: T, which scores are divided by.

    Returns:
        float [B].
    """
    student = functional.log_softmax(full_precision(scores) / temperature, dim=-1)
    teacher = functional.softmax(full_precision(teacher_scores) / temperature, dim=-1)
    if teacher.dim() == 3:
        teacher = teacher.mean(0)
    values = functional.kl_div(student, teacher, reduction="none").sum(-1) * temperature**2
    return _by_row(values, masked_rows, labelled)


def _by_row(values: Tensor, rows: Tensor, labelled: Tensor) -> Tensor:
    """Values of positions [M] -> their sums by row [B]."""
    return torch.zeros(len(labelled), dtype=values.dtype, device=values.device).index_add(0, rows, values)

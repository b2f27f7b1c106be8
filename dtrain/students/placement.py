"""How long a student will train, against the others."""

from __future__ import annotations

from dtrain.data import PreparedData, tokenizer_name
from dtrain.recipe.training import Student


def cost(student: Student, data: PreparedData | None) -> float:
    """An estimate of a student's training time, in multiply-adds; only its order and ratios matter.

    Args:
        student: resolved, so that `rows` is set.
        data: None before there is any: all rows count alike then.
    """
    tokens = float(student.epochs)
    if data is not None:
        parts = [data.part(part, tokenizer_name(student)) for part in student.rows or ["train"]]
        tokens *= float(sum(part.lengths.sum() for part in parts))
    return tokens * student.model.multiply_adds

"""How long a student will train, against the others."""

from __future__ import annotations

from dtrain.data import tokenizer_name
from dtrain.recipe.training import Student
from dtrain.tasks.prepared import PreparedTasks


def cost(student: Student, tasks: PreparedTasks | None) -> float:
    """An estimate of a student's training time, in multiply-adds; only its order and ratios matter.

    Args:
        student: resolved, so that `rows` is set.
        tasks: with their rows; None before there are any: all count alike then.
    """
    tokens = float(student.epochs)
    if tasks is not None:
        data = tasks.of(student).data
        parts = [data.part(part, tokenizer_name(student)) for part in student.rows or ["train"]]
        tokens *= float(sum(part.lengths.sum() for part in parts))
    return tokens * student.model.multiply_adds

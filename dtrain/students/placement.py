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
    tokens = 0.0
    for training in student.trainings:
        epoch = 1.0
        if tasks is not None:
            data = tasks.of(student).data
            parts = [data.part(part, tokenizer_name(student)) for part in training.rows or ["train"]]
            epoch = float(sum(part.lengths.sum() for part in parts))
        tokens += training.epochs * epoch
    return tokens * student.model.multiply_adds

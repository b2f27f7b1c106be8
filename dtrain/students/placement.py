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
    for part in student.parts.values():
        for training in part.trainings:
            epoch = 1.0
            if tasks is not None:
                data = tasks.of(part).data
                rows = [data.part(name, tokenizer_name(student)) for name in training.rows or ["train"]]
                epoch = float(sum(each.lengths.sum() for each in rows))
            tokens += training.epochs * epoch
    return tokens * student.model.multiply_adds

"""How long a student will train, in comparison with the others."""

from __future__ import annotations

from dtrain.data import tokenizer_name
from dtrain.recipe.phases import CORPUS
from dtrain.recipe.training import Student
from dtrain.recipe.values import TAUGHT
from dtrain.tasks.prepared import PreparedTasks


def cost(student: Student, tasks: PreparedTasks | None) -> float:
    """An estimate of a student's training time, in multiply-adds; only its order and ratios matter.

    Args:
        student: resolved, so that `rows` is set.
        tasks: the tasks with their rows; None before they are prepared: then every epoch counts the same.
    """
    tokens = 0.0
    for part in student.parts.values():
        for training in part.trainings:
            epoch = 1.0
            if tasks is not None:
                data = tasks.of(part).data
                there = data.parts_read(tokenizer_name(part))
                rows = [data.part(name, tokenizer_name(part)) for name in _parts(training) if name in there]
                epoch = float(sum(each.lengths.sum() for each in rows))
            tokens += training.epochs * epoch
    return tokens * student.model.multiply_adds


def _parts(training: Student) -> list[str]:
    """The parts whose tokens are counted for an epoch: plain text and rows by a teacher may not exist yet, and are not.

    Where nothing else is read, the training rows are counted in their place.
    """
    return [part for part in training.rows or [] if part != CORPUS and part not in TAUGHT] or ["train"]

"""Which student trains where: a queue, longest first, from which every rank takes when it is free."""

from __future__ import annotations

from dtrain.data import PreparedData, tokenizer_name
from dtrain.recipe.schema import BiLSTMSpec, Student, TextCNNSpec


def cost(student: Student, data: PreparedData) -> float:
    """An estimate of a student's training time, in multiply-adds; only its order matters.

    Args:
        student: resolved, so that `rows` is set.
    """
    parts = [data.part(part, tokenizer_name(student)) for part in student.rows or ["train"]]
    tokens = float(sum(part.lengths.sum() for part in parts)) * student.epochs
    spec = student.model
    if isinstance(spec, TextCNNSpec):
        per_token = spec.embedding * spec.filters * sum(spec.widths)
    elif isinstance(spec, BiLSTMSpec):
        # The recurrence runs token after token: about three times as slow as its arithmetic (measured, 2 cores).
        per_token = 3 * 2 * 4 * spec.hidden * (spec.embedding + spec.hidden + (spec.layers - 1) * 3 * spec.hidden)
    else:
        hidden, layers, _ = spec.shape()
        per_token = 12 * hidden * hidden * layers
    return tokens * per_token


def queue(students: list[Student], data: PreparedData) -> list[Student]:
    """Longest first, so that the last one to end ends early; ties by name, the same on every rank."""
    return sorted(students, key=lambda student: (-cost(student, data), student.name))

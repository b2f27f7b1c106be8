"""How long a student will train, against the others."""

from __future__ import annotations

from dtrain.data import PreparedData, tokenizer_name
from dtrain.recipe.models import (
    BertCNNSpec,
    BiLSTMSpec,
    FastTextSpec,
    IdcnnSpec,
    SiameseSpec,
    TaggerSpec,
    TextCNNSpec,
    TextRCNNSpec,
    encoder_of,
)
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
    spec = student.model
    per_token = 0
    encoder = encoder_of(spec)
    if encoder is not None:
        hidden, layers, _ = encoder.shape()
        per_token += 12 * hidden * hidden * layers
    if isinstance(spec, TextCNNSpec):
        per_token += spec.embedding * spec.filters * sum(spec.widths)
    elif isinstance(spec, BertCNNSpec):
        per_token += spec.encoder.shape()[0] * spec.filters * sum(spec.widths)
    elif isinstance(spec, FastTextSpec):
        per_token += spec.embedding * spec.ngrams
    elif isinstance(spec, TextRCNNSpec):
        combined = (spec.embedding + 2 * spec.hidden) * spec.features
        per_token += _recurrence(spec.hidden, spec.embedding + spec.hidden) + combined
    elif isinstance(spec, BiLSTMSpec | SiameseSpec):
        per_token += _recurrence(spec.hidden, spec.embedding + spec.hidden + (spec.layers - 1) * 3 * spec.hidden)
    elif isinstance(spec, TaggerSpec) and spec.lstm:
        width = encoder.shape()[0] if encoder is not None else spec.embedding
        per_token += _recurrence(spec.lstm, width + spec.lstm)
    elif isinstance(spec, IdcnnSpec):
        per_token += spec.filters**2 * spec.width * len(spec.dilations) * spec.blocks
    return tokens * per_token


def _recurrence(hidden: int, inputs: int) -> int:
    """It runs token after token: about three times as slow as its arithmetic (measured, 2 cores)."""
    return 3 * 2 * 4 * hidden * inputs

"""Predicted entities of a text with their positions, and scores of the tagger's confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dtrain.metrics.entities import spans


def answer_spans(
    text: str, tags: np.ndarray, types: Sequence[str], log_probabilities: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """The entities of one text in order, each with its text, type, start, end (exclusive) and score.

    The score is the lowest probability among the entity's characters. It is at least the probability of the whole
    entity, does not decrease with its length as a product would, and reflects its least certain character, usually at
    a boundary.

    Args:
        text: N characters.
        tags: integer [N], BIOES numbers as in `dtrain.metrics.entities`.
        types: names of the types.
        log_probabilities: float [N], log p(tag | text) of the tag at each character; without them no score is given.

    Raises:
        ValueError: lengths that differ, or a negative tag.
    """
    if len(tags) != len(text) or (log_probabilities is not None and len(log_probabilities) != len(text)):
        raise ValueError(f"a text of {len(text)} characters needs a tag and a probability for each")
    answers = []
    for kind, start, end in spans(tags):
        answer = {"text": text[start:end], "type": types[kind], "start": start, "end": end}
        if log_probabilities is not None:
            # Log-probabilities from forward-backward may exceed 0 by a rounding error.
            answer["score"] = min(1.0, math.exp(log_probabilities[start:end].min()))
        answers.append(answer)
    return answers

"""Classification scores from one matrix of counts, equal to scikit-learn's to the last digit.

Batches and ranks only exchange the matrix: a sum of integers does not depend on their order, and the scores are
computed once, from the total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of (gold, predicted) pairs.

    Attributes:
        counts: int64 [C, C] on the CPU; rows are gold classes, columns predicted ones.
    """

    counts: torch.Tensor

    @classmethod
    def empty(cls, classes: int) -> Confusion:
        return cls(torch.zeros(classes, classes, dtype=torch.int64))

    @classmethod
    def of(cls, gold: torch.Tensor, predicted: torch.Tensor, classes: int) -> Confusion:
        """Count one batch of class numbers, both integer [B].

        Raises:
            ValueError: a number outside 0..classes-1 (an unlabelled row is -1), or lengths that differ.
        """
        gold, predicted = gold.detach().cpu().long(), predicted.detach().cpu().long()
        if gold.shape != predicted.shape or gold.dim() != 1:
            raise ValueError(f"gold {list(gold.shape)} and predicted {list(predicted.shape)} must both be [rows]")
        for name, values in (("gold", gold), ("predicted", predicted)):
            wrong = values[(values < 0) | (values >= classes)]
            if len(wrong):
                raise ValueError(f"{name} class {int(wrong[0])} is not in 0..{classes - 1}")
        pairs = torch.bincount(gold * classes + predicted, minlength=classes * classes)
        return cls(pairs.reshape(classes, classes))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts)

    @property
    def rows(self) -> int:
        return int(self.counts.sum())


def scores(confusion: Confusion) -> dict[str, float]:
    """Accuracy; precision, recall and F1 as macro means; F1 weighted by gold counts; the number of rows.

    As scikit-learn without `labels` and with `zero_division=0`: a class that is neither among the gold labels nor among
    the predictions is left out of the means, and a ratio with denominator 0 is 0.

    Raises:
        ValueError: no rows were counted.
    """
    if confusion.rows == 0:
        raise ValueError("no labelled rows were counted; scores of nothing are not defined")
    counts = confusion.counts.numpy()
    precision, recall, f1 = _shares(counts)
    gold = counts.sum(axis=1)
    seen = (gold + counts.sum(axis=0)) > 0
    return {
        "accuracy": float(np.trace(counts) / counts.sum()),
        "precision": float(np.average(precision[seen])),
        "recall": float(np.average(recall[seen])),
        "f1": float(np.average(f1[seen])),
        "f1_weighted": float(np.average(f1[seen], weights=gold[seen])),
        "rows": confusion.rows,
    }


def per_class(confusion: Confusion, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Label, precision, recall, F1 and number of gold rows of every class, in the order of `labels`."""
    counts = confusion.counts.numpy()
    precision, recall, f1 = _shares(counts)
    table = zip(labels, precision, recall, f1, counts.sum(axis=1), strict=True)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for label, p, r, f, n in table
    ]


def _shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of every class, float64 [C]; 0 where the denominator is 0."""
    hits, gold, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    return _divide(hits, predicted), _divide(hits, gold), _divide(2 * hits, gold + predicted)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.where(whole == 0, 1, whole)  # where the whole is 0, so is the part

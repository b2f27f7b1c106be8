"""Scores of sets of labels from counts by label, equal to scikit-learn's to the last digit.

Batches and ranks only exchange the counts of hits, predicted and gold labels: int64 numbers that are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def count_labels(gold: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """The numbers of hits, predicted and gold rows of each label, int64 [C, 3] on the CPU.

    Args:
        gold, predicted: bool [B, C].
    """
    if gold.shape != predicted.shape or gold.dim() != 2:
        raise ValueError(f"gold {list(gold.shape)} and predicted {list(predicted.shape)} must both be [rows, labels]")
    return torch.stack([(gold & predicted).sum(0), predicted.sum(0), gold.sum(0)], dim=1).cpu()


def label_set_scores(counts: torch.Tensor, exact: int, rows: int) -> dict[str, float]:
    """Micro, macro and weighted scores of all labels, and the share of rows whose predicted set is the gold one.

    As scikit-learn with `zero_division=0`: a ratio with denominator 0 is 0, and the macro means are over all labels.

    Args:
        counts: int64 [C, 3], a sum of `count_labels`.
        exact: rows whose predicted set is the gold one.
        rows: the number of rows.

    Returns:
        precision, recall, f1 over all labels (micro); precision_macro, recall_macro, f1_macro; f1_weighted by gold rows;
        exact_match; rows.

    Raises:
        ValueError: no rows were counted.
    """
    if rows == 0:
        raise ValueError("no labelled rows were counted; scores of nothing are not defined")
    table = counts.numpy()
    (precision,), (recall,), (f1,) = _shares(table.sum(axis=0, keepdims=True))
    each = _shares(table)
    gold = table[:, 2]
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "precision_macro": float(np.average(each[0])),
        "recall_macro": float(np.average(each[1])),
        "f1_macro": float(np.average(each[2])),
        "f1_weighted": float(np.average(each[2], weights=gold)) if gold.any() else 0.0,
        "exact_match": exact / rows,
        "rows": rows,
    }


def per_label(counts: torch.Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Label, precision, recall, F1 and number of gold rows of every label, in the order of `labels`."""
    table = counts.numpy()
    rows = zip(labels, *_shares(table), table[:, 2], strict=True)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for label, p, r, f, n in rows
    ]


def _shares(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, float64 [rows of the table]; 0 where the denominator is 0."""
    hits, predicted, gold = table.T
    return _divide(hits, predicted), _divide(hits, gold), _divide(2 * hits, predicted + gold)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.where(whole == 0, 1, whole)  # where the whole is 0, so is the part

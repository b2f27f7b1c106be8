"""Scores of predicted numbers, equal to scipy's and scikit-learn's to the last digit.

They are computed from the predictions of all rows, in the order of the rows: sums over parts of them would be rounded
otherwise for every way to cut the rows, and ranks of numbers exist among all rows alone.
"""

from __future__ import annotations

import math

import numpy as np

ONE_THREAD = (
    10_000  # numbers of a product that OpenBLAS gives to one thread; above, their sum depends on how many it has
)


def number_scores(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation, the mean squared and the mean absolute error, and the number of rows.

    A correlation with a constant is not defined (scipy gives NaN); here it is 0.

    Args:
        gold, predicted: float64 [N], in the same order.

    Raises:
        ValueError: no rows, or lengths that differ.
    """
    if gold.shape != predicted.shape or gold.ndim != 1 or not len(gold):
        raise ValueError(
            f"gold {list(gold.shape)} and predicted {list(predicted.shape)} must both be [rows], at least one"
        )
    return {
        "pearson": pearson(gold, predicted),
        "spearman": spearman(gold, predicted),
        "mse": float(np.average((gold - predicted) ** 2)),
        "mae": float(np.average(np.abs(predicted - gold))),
        "rows": len(gold),
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """sum (x - mean x)(y - mean y) / (||x - mean x|| ||y - mean y||), as `scipy.stats.pearsonr` rounds it.

    0 where one of the two, float64 [N], is constant.
    """
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    if len(x) == 2:
        return float(np.sign(x[1] - x[0]) * np.sign(y[1] - y[0]))
    pieces = range(0, len(x), ONE_THREAD)
    a, b = _direction(x), _direction(y)
    product = math.fsum(float(np.vecdot(a[i : i + ONE_THREAD], b[i : i + ONE_THREAD])) for i in pieces)
    return min(1.0, max(-1.0, product))


def _direction(values: np.ndarray) -> np.ndarray:
    """What is left of float64 [N] less its mean, of length 1. Divided by the largest first: squares must not overflow."""
    centred = values - values.mean()
    largest = np.max(np.abs(centred))
    # With an axis, numpy adds up in pairs and by one thread; without, by BLAS.
    return centred / (largest * np.linalg.vector_norm(centred / largest, axis=-1, keepdims=True))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks, as `scipy.stats.spearmanr` rounds it; 0 where one of the two is constant."""
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    # Ranks are halves of whole numbers, whose sums are exact up to some 400,000 rows.
    return float(np.corrcoef(np.stack([average_ranks(x), average_ranks(y)], axis=1), rowvar=False)[1, 0])


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [N]; equal numbers share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]

"""Scores of predicted numbers, equal to scipy's and scikit-learn's to the last digit.

They are computed from the predictions of all rows, in the order of the rows: sums over parts of the rows would be
rounded differently for each way to split them, and the ranks of numbers need all rows.
"""

from __future__ import annotations

import math

import numpy as np

# OpenBLAS uses one thread for dot products of up to this many numbers; beyond, sums depend on the number of threads.
ONE_THREAD = 10_000


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
    """sum (x - mean x)(y - mean y) / (||x - mean x|| ||y - mean y||), rounded as by `scipy.stats.pearsonr`.

    It is 0 where `x` or `y`, both float64 [N], is constant.
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
    """`values` minus their mean, scaled to length 1, float64 [N]. Scaling by the largest first keeps squares finite."""
    centred = values - values.mean()
    largest = np.max(np.abs(centred))
    # With an axis, numpy sums pairwise in one thread; without, it calls BLAS.
    return centred / (largest * np.linalg.vector_norm(centred / largest, axis=-1, keepdims=True))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks, rounded as by `scipy.stats.spearmanr`; 0 where `x` or `y` is constant."""
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    # Ranks are multiples of 0.5, so that their sums are exact up to about 400,000 rows.
    return float(np.corrcoef(np.stack([average_ranks(x), average_ranks(y)], axis=1), rowvar=False)[1, 0])


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [N]; equal numbers all have the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]

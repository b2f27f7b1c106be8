"""Which rows go together: pure functions of lengths, seed, epoch and position, whatever the number of ranks.

Batches are positions 0..N-1 into a part. Padding is kept low by putting rows of like length together.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

POOL = 50  # batches: enough to sort by length well, few enough to leave the order random


def training_batches(
    lengths: np.ndarray, seed: int, epoch: int, batch_size: int | None = None, batch_tokens: int | None = None
) -> list[np.ndarray]:
    """The global batches of one epoch, in order; every row is in exactly one.

    Rows are permuted by (seed, epoch), pools of 50 batches are sorted by length and cut, batches are shuffled.

    Args:
        lengths: tokens of each row, [N].
        batch_size: rows a batch, or
        batch_tokens: the most padded tokens (rows x longest row) a batch; a longer row is a batch of its own.

    Returns:
        int64 arrays of positions, each ascending in length.

    Raises:
        ValueError: unless exactly one of the two sizes is given.
    """
    if (batch_size is None) == (batch_tokens is None):
        raise ValueError("give one of batch_size and batch_tokens")
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for pool in _pools(order, lengths, batch_size, batch_tokens):
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        if batch_size is not None:
            batches += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        else:
            batches += _cut(pool, lengths, batch_tokens or 0)
    return [batches[i] for i in random.permutation(len(batches))]


def share_of(batch: np.ndarray, rank: int, world: int, accumulation: int, step: int) -> list[np.ndarray]:
    """One rank's micro-batches of a global batch: `accumulation` of them, some empty where rows are few.

    Over ranks and micro-batches every row comes once. Ranks take turns along the rows sorted by length, so that
    all pad alike; their row counts differ by at most one, and `step` moves the odd rows from rank to rank.
    """
    mine = batch[(rank + step) % world :: world]
    return np.array_split(mine, accumulation)


def inference_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Positions sorted by (length, position), cut so that rows x longest <= `batch_tokens`; a longer row alone."""
    return _cut(np.argsort(lengths, kind="stable"), lengths, batch_tokens)


def _pools(
    order: np.ndarray, lengths: np.ndarray, batch_size: int | None, batch_tokens: int | None
) -> list[np.ndarray]:
    """Consecutive stretches of `order`, each about POOL batches."""
    if batch_size is not None:
        return [order[start : start + POOL * batch_size] for start in range(0, len(order), POOL * batch_size)]
    pool_of_row = np.cumsum(lengths[order], dtype=np.int64) // (POOL * (batch_tokens or 0))
    return np.split(order, np.flatnonzero(np.diff(pool_of_row)) + 1) if len(order) else []


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut `order`, ascending in length, into the longest stretches within the budget."""
    ascending = lengths[order].tolist()
    batches = []
    start = 0
    while start < len(order):
        rows = bisect_right(range(1, len(order) - start + 1), budget, key=lambda n: n * ascending[start + n - 1])
        batches.append(order[start : start + max(rows, 1)])
        start += max(rows, 1)
    return batches

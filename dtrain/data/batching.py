"""Which rows form a batch: pure functions of lengths, seed, epoch and position, independent of the number of ranks.

Batches are arrays of positions 0..N-1 in a part. Rows of similar length are put together to keep padding low.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

POOL = 50  # batches sorted by length together: many enough for little padding, few enough to keep the order random


class Batches(Sequence[np.ndarray]):
    """Batches as slices of one array: for small batches, an array object each would take more memory than the rows.

    Args:
        rows: positions, int64 [N].
        starts, stops: where each batch begins and ends in `rows`, int64 [batches].
    """

    def __init__(self, rows: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        self.rows, self.starts, self.stops = rows, starts, stops

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, which: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, which: slice) -> Batches: ...
    def __getitem__(self, which: int | slice) -> np.ndarray | Batches:
        if isinstance(which, slice):
            return Batches(self.rows, self.starts[which], self.stops[which])
        return self.rows[self.starts[which] : self.stops[which]]


def training_batches(
    lengths: np.ndarray, seed: int, epoch: int, batch_size: int | None = None, batch_tokens: int | None = None
) -> Batches:
    """The global batches of one epoch, in order; every row is in exactly one.

    Rows are permuted by (seed, epoch), pools of 50 batches are sorted by length and cut into batches, and the batches
    are shuffled.

    Args:
        lengths: tokens of each row, integer [N].
        batch_size: rows of a batch.
        batch_tokens: instead of `batch_size`, the most padded tokens of a batch (rows x longest row); a row that is
            longer is a batch of its own.

    Returns:
        int64 arrays of positions, each sorted by ascending length of the rows.

    Raises:
        ValueError: unless exactly one of the two sizes is given.
    """
    if (batch_size is None) == (batch_tokens is None):
        raise ValueError("give one of batch_size and batch_tokens")
    random = np.random.default_rng([seed, epoch])
    rows = random.permutation(len(lengths))
    starts = []
    for first, last in _pools(lengths[rows], batch_size, batch_tokens):
        pool = rows[first:last]
        rows[first:last] = pool[np.argsort(lengths[pool], kind="stable")]
        if batch_size is not None:
            starts.append(np.arange(first, last, batch_size))
        else:
            starts.append(first + _cuts(lengths[rows[first:last]], batch_tokens or 0))
    begins = np.concatenate([np.empty(0, np.int64), *starts])
    order = random.permutation(len(begins))
    return Batches(rows, begins[order], np.append(begins[1:], len(rows))[order])


def share_of(batch: np.ndarray, rank: int, world: int, accumulation: int, step: int) -> list[np.ndarray]:
    """One rank's micro-batches of a global batch: `accumulation` of them, some of them empty where there are few rows.

    Every row is in exactly one micro-batch of one rank. The rows, sorted by length, are dealt to the ranks in turn, so
    that all ranks have about the same padding. The ranks' numbers of rows differ by at most one, and `step` rotates
    which ranks have one more.
    """
    mine = batch[(rank + step) % world :: world]
    return np.array_split(mine, accumulation)


def inference_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Positions sorted by (length, position) and cut so that rows x longest row <= `batch_tokens`.

    A row longer than `batch_tokens` is a batch of its own.

    Args:
        lengths: tokens of each row, integer [N].
    """
    order = np.argsort(lengths, kind="stable")
    return np.split(order, _cuts(lengths[order], batch_tokens)[1:]) if len(order) else []


def _pools(lengths: np.ndarray, batch_size: int | None, batch_tokens: int | None) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive rows, each range with about POOL batches."""
    if batch_size is not None:
        bounds = np.arange(0, len(lengths), POOL * batch_size)
    else:
        pool_of_row = np.cumsum(lengths, dtype=np.int64) // (POOL * (batch_tokens or 0))
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(pool_of_row)) + 1])[: len(lengths)]
    return pairwise([*bounds.tolist(), len(lengths)])


def _cuts(ascending: np.ndarray, budget: int) -> np.ndarray:
    """Where batches begin, int64, when rows with these ascending lengths are packed greedily.

    Each batch gets as many rows as fit into `budget` padded tokens, and at least one.
    """
    lengths = ascending.tolist()
    starts = []
    start = 0
    while start < len(lengths):
        starts.append(start)
        rows = bisect_right(range(1, len(lengths) - start + 1), budget, key=lambda n: n * lengths[start + n - 1])
        start += max(rows, 1)
    return np.array(starts, dtype=np.int64)

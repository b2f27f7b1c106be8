"""Batches of several tasks in one order: a function of (seed, epoch, position) and nothing else.

Each batch has rows of one task. An epoch has as many batches as one pass over the rows of every task takes. With b
being the number of batches of one pass over a task's rows, the task's share of the epoch is:

    proportional          b batches: each of its rows once (MT-DNN, Liu et al. 1901.11504, algorithm 1)
    equal                 as many batches as every other task
    temperature T         in proportion to b^(1/T) (BAM, Clark et al. 1907.04829: T = 4/3)

A task with more than b batches begins its rows again, in another order; one with fewer continues in the next epoch
where it stopped in this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import overload

import numpy as np

from dtrain.data.batching import Batches, training_batches
from dtrain.runfolder import fingerprint


class MixedBatches(Sequence[np.ndarray]):
    """Batches of several tasks, as positions in the concatenated rows of all tasks.

    Args:
        batches: by task, its batches of this epoch, as positions in the task's own rows.
        first: by task, where its rows begin in the concatenation.
        order: the number of the task of each batch, int [batches].
    """

    def __init__(self, batches: Sequence[Sequence[np.ndarray]], first: Sequence[int], order: np.ndarray) -> None:
        self._batches, self._first, self._order = batches, first, order
        # For each batch, the number of earlier batches of the same task.
        self._turn = np.zeros(len(order), dtype=np.int64)
        for task in range(len(batches)):
            own = order == task
            self._turn[own] = np.arange(own.sum())

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, which: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, which: slice) -> list[np.ndarray]: ...
    def __getitem__(self, which: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        task = int(self._order[which])
        found: np.ndarray = self._batches[task][int(self._turn[which])] + self._first[task]
        return found


def batch_counts(own: Sequence[int], exponent: float) -> list[int]:
    """The number of batches of each task in an epoch, at least 1 each; they add up to the sum of `own`.

    Args:
        own: the number of batches of one pass over each task's rows, at least 1.
        exponent: shares are in proportion to own^exponent: 1 is proportional, 0 equal, 1 / T temperature T.
    """
    whole = sum(own)
    weights = np.asarray(own, dtype=np.float64) ** exponent
    exact = weights / weights.sum() * whole
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    # The largest remainders are rounded up; among equal ones, those of earlier tasks.
    order = np.argsort(-(exact - counts), kind="stable")
    missing = whole - int(counts.sum())
    for place in range(abs(missing)):
        if missing > 0:
            counts[order[place % len(own)]] += 1
        else:
            counts[int(np.argmax(counts))] -= 1
    return [int(count) for count in counts]


def mixed_batches(
    lengths: Mapping[str, np.ndarray],
    seed: int,
    epoch: int,
    exponent: float,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
) -> MixedBatches:
    """The global batches of one epoch over several tasks, in order.

    Args:
        lengths: by task, the number of tokens of each of its rows, integer [N].
        exponent: see `batch_counts`.
        batch_size, batch_tokens: see `training_batches`.
    """
    size = {"batch_size": batch_size, "batch_tokens": batch_tokens}

    @cache
    def passes(task: str, number: int) -> Batches:
        """All batches of a task's `number`-th pass over its rows."""
        return training_batches(lengths[task], int(fingerprint(seed, task)[:8], 16), number, **size)

    if exponent == 1.0:  # whole passes; with `batch_tokens` their numbers of batches may differ from pass to pass
        chosen: list[Sequence[np.ndarray]] = [passes(task, epoch) for task in lengths]
    else:
        counts = batch_counts([len(passes(task, 0)) for task in lengths], exponent)
        chosen = []
        for task, count in zip(lengths, counts, strict=True):
            own: list[np.ndarray] = []
            number, skipped = 0, epoch * count  # skip the batches of earlier epochs
            if batch_size is not None:  # every pass has the same number of batches
                number, skipped = divmod(skipped, len(passes(task, 0)))
            while len(own) < count:
                batches = passes(task, number)
                if skipped >= len(batches):
                    skipped -= len(batches)
                else:
                    own += batches[skipped:][: count - len(own)]
                    skipped = 0
                number += 1
            chosen.append(own)
    random = np.random.default_rng([seed, epoch, len(lengths)])
    order = random.permutation(np.repeat(np.arange(len(chosen)), [len(batches) for batches in chosen]))
    first = np.cumsum([0, *(len(rows) for rows in lengths.values())])[:-1].tolist()
    return MixedBatches(chosen, first, order)

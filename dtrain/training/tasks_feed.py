"""The feed of a model of several tasks: the feeds of its tasks, whose batches come in one order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dtrain.data.batch import Batch
from dtrain.data.mixing import mixed_batches
from dtrain.training.feed import Feed


@dataclass(eq=False)
class JoinedRows:
    """Rows of several tasks side by side, as the loop sees them."""

    lengths: np.ndarray


class TasksFeed(Feed):
    """Gives batches of one task each.

    Positions count the rows of all tasks, one task after another.

    Args:
        feeds: the feed of each task, by name. They may share a `Reading` if they differ in `piece`.
        exponent: decides how often each task comes; see `dtrain.data.mixing`.
    """

    def __init__(self, feeds: Mapping[str, Feed], exponent: float) -> None:
        self.feeds, self.exponent = dict(feeds), exponent
        self.lengths = {name: feed.rows.lengths for name, feed in self.feeds.items()}
        self.rows = JoinedRows(np.concatenate(list(self.lengths.values())))
        self.units = np.concatenate([feed.units for feed in self.feeds.values()])
        self.draw = None
        self._first = np.cumsum([0, *map(len, self.lengths.values())])

    def epoch(self, seed: int, epoch: int, batch_size: int | None, batch_tokens: int | None) -> Sequence[np.ndarray]:
        return mixed_batches(self.lengths, seed, epoch, self.exponent, batch_size, batch_tokens)

    def steps(self, epochs: int, seed: int, batch_size: int | None, batch_tokens: int | None) -> int:
        if batch_size is not None:
            return epochs * sum(-(-len(rows) // batch_size) for rows in self.lengths.values())
        return sum(len(self.epoch(seed, epoch, batch_size, batch_tokens)) for epoch in range(epochs))

    def first_rows(self) -> list[int]:
        return [int(first) for first in self._first[:-1]]

    def read_ahead(self, indices: Iterable[np.ndarray]) -> None:
        for index in indices:
            _, feed, own = self._of(index)
            feed.read_ahead([own])

    def batch(self, index: np.ndarray) -> Batch:
        task, feed, own = self._of(index)
        return replace(feed.batch(own), rows=index, task=task)

    def close(self) -> None:
        for feed in self.feeds.values():
            feed.close()

    def task_of(self, index: np.ndarray) -> str:
        """The task of the rows at positions `index`, which are all of one task."""
        return self._of(index)[0]

    def _of(self, index: np.ndarray) -> tuple[str, Feed, np.ndarray]:
        """Task, feed, and the positions among the task's own rows."""
        number = int(np.searchsorted(self._first, index[0], side="right")) - 1
        task = list(self.feeds)[number]
        return task, self.feeds[task], index - self._first[number]

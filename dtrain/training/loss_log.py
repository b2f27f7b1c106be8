"""Sums of the loss terms over several steps, kept on the device so that no step waits for it."""

from __future__ import annotations

import math

import torch

from dtrain.data.batch import Batch
from dtrain.engines.engine import Engine
from dtrain.engines.speed import Clock
from dtrain.losses.objective import Losses
from dtrain.training.job import Diverged, Position


class LossLog:
    """Sums and counts of each loss term since the last `flush`."""

    def __init__(self, engine: Engine, title: str, position: Position, clock: Clock) -> None:
        self.engine, self.title, self.position, self.clock = engine, title, position, clock
        self._pending: dict[str, list[torch.Tensor]] = {}

    def add(self, losses: Losses, batch: Batch, *, counts: bool) -> None:
        """Add the losses of a micro-batch; without `counts` as zeros, for a rank without rows that only took part."""
        total, sums, numbers = losses
        terms = [("loss", total.detach(), batch.units.sum()), *((name, sums[name], numbers[name]) for name in sums)]
        for name, sum_, number in terms:
            pair = torch.stack([sum_.double(), number.double()])
            self._pending.setdefault(name, []).append(pair if counts else torch.zeros_like(pair))

    def flush(self) -> None:
        """Add the losses of all ranks since the last flush, unweighted and by term, to the sums in the position.

        This waits for the device, so the time since the last flush is what the steps took, and is credited to them.

        Raises:
            Diverged: a term is not finite.
        """
        if not self._pending:
            return
        pairs = torch.stack([torch.stack(found).sum(0) for found in self._pending.values()])
        if self.engine.data_parallel:
            pairs = self.engine.world.sum(pairs)
        for name, (sum_, count) in zip(self._pending, pairs.tolist(), strict=True):
            if not math.isfinite(sum_):
                raise Diverged(f"{self.title}: {name} is {sum_} at step {self.position.step}")
            for sums in (self.position.running, self.position.unlogged):
                kept = sums.setdefault(name, [0.0, 0.0])
                kept[0] += sum_
                kept[1] += count
        self._pending = {}
        self.clock.look()

    def means_since_point(self) -> dict[str, float]:
        """The mean of each term since the last point of the curves; flushes first."""
        self.flush()
        return _means(self.position.unlogged)

    def means_since_evaluation(self) -> dict[str, float]:
        """The mean of each term over all that was flushed since the last evaluation."""
        return _means(self.position.running)


def _means(sums: dict[str, list[float]]) -> dict[str, float]:
    """The means by term of (sum, count), which are then reset."""
    means = {name: sum_ / count if count else 0.0 for name, (sum_, count) in sums.items()}
    sums.clear()
    return means

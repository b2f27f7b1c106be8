"""Successive halving (Jamieson & Talwalkar 2016, 1502.07943): students are compared on the way, and the worst stopped.

Every student trains to an epoch, waits there with a checkpoint until all others have come, and goes on if its best
score so far is among the best share of them. Decisions are kept in `search.json`: a run that is continued, even on
another number of ranks, makes none of them twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dtrain.plan import Plan
from dtrain.runfolder import read_json, write_json


class Halving:
    """The decisions of one search.

    Args:
        path: of `search.json`.
    """

    def __init__(self, plan: Plan, path: Path) -> None:
        assert plan.recipe.search is not None
        self.spec, self.path, self.identity = plan.recipe.search, path, plan.search
        self.rungs: list[dict[str, Any]] = []
        try:
            record = read_json(path)
            if record["fingerprint"] == self.identity:
                self.rungs = record["rungs"]
        except (OSError, ValueError, KeyError):
            pass

    @property
    def next_epoch(self) -> int | None:
        """The epoch after which students are compared next; None when no comparison is left."""
        return self.spec.epochs[len(self.rungs)] if len(self.rungs) < len(self.spec.epochs) else None

    @property
    def stopped(self) -> dict[str, str]:
        """The reason for which each stopped student was stopped, by name."""
        return {name: reason for rung in self.rungs for name, reason in rung["stopped"].items()}

    def decide(self, scores: Mapping[str, float], metric: str) -> dict[str, str]:
        """Compare students at `next_epoch`, and write the decision to `search.json`; returns who is stopped, and why.

        Args:
            scores: the score of each student by name, the higher the better (a loss is given as its negative).
            metric: the name of the score, for the reason.
        """
        epoch = self.next_epoch
        assert epoch is not None
        order = sorted(scores, key=lambda name: (-scores[name], name))
        kept = max(1, math.ceil(self.spec.keep * len(order) - 1e-9))  # as floats, 0.28 * 25 is a little over 7
        stopped = {
            name: f"stopped by the search after epoch {epoch}: {metric} {abs(scores[name]):.4f}, "
            f"place {place} of {len(order)}, of which {kept} went on"
            for place, name in enumerate(order, 1)
            if place > kept
        }
        rung = {"epoch": epoch, "metric": metric, "scores": dict(scores), "kept": order[:kept], "stopped": stopped}
        self.rungs.append(rung)
        write_json(self.path, {"fingerprint": self.identity, "rungs": self.rungs})
        return stopped


def score_until(history: Iterable[Mapping[str, Any]], metric: str, epoch: int) -> float | None:
    """The best validation score up to an epoch (of `loss` its negative); None before the first evaluation."""
    found = [entry[metric] for entry in history if entry["split"] == "valid" and entry["epoch"] <= epoch]
    if not found:
        return None
    return -min(found) if metric == "loss" else max(found)

"""Scores of several tasks as one mapping: `TASK.SCORE`, and `mean` and `loss`, the means of metrics and of losses."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

MEAN = "mean"


def joined_scores(
    scores: Mapping[str, Mapping[str, float]], metrics: Mapping[str, str], baseline: Mapping[str, float]
) -> dict[str, float]:
    """Scores of all tasks, the mean of their metrics, the mean of their losses, and how many rows were scored.

    Args:
        scores: by task, its scores.
        metrics: by task, the score that is averaged; for `loss`, its negative is.
        baseline: by task, the number that this score is divided by; 1 for a task without one.
    """
    means = []
    for task, found in scores.items():
        score = -found["loss"] if metrics[task] == "loss" else found[metrics[task]]
        means.append(score / baseline.get(task, 1.0))
    return {
        **{f"{task}.{name}": value for task, found in scores.items() for name, value in found.items()},
        MEAN: statistics.fmean(means),
        "loss": statistics.fmean(found["loss"] for found in scores.values()),
        "rows": sum(found["rows"] for found in scores.values()),
    }


def scores_of(scores: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The scores of one task from joined scores, under their own names; a copy of `scores` if these are not joined."""
    if not task or MEAN not in scores:
        return dict(scores)
    return {name.removeprefix(f"{task}."): value for name, value in scores.items() if name.startswith(f"{task}.")}

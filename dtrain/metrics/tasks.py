"""Scores of several tasks as one mapping: `TASK.SCORE` for each, `mean` of the tasks' metrics, and `loss`."""

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
        scores: by task.
        metrics: by task, which of its scores enters the mean; of `loss` the negative does.
        baseline: by task, what that score is divided by; 1 where it has none.
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
    """Of joined scores, those of one task under their own names; what is of one task alone, as it is."""
    if not task or MEAN not in scores:
        return dict(scores)
    return {name.removeprefix(f"{task}."): value for name, value in scores.items() if name.startswith(f"{task}.")}

"""Warnings that follow from a trained model's scores: it has learnt nothing, or gives every row the same answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def remarks(
    evaluations: Sequence[Mapping[str, float]], kept: Mapping[str, float], gold: np.ndarray, labels: Sequence[str]
) -> list[str]:
    """Sentences about a model, to be logged and written to its metrics.json; mostly there are none.

    Args:
        evaluations: the scores on the validation rows of each evaluation during the training.
        kept: the scores of the weights that were kept.
        gold: int [N], the validation rows' classes, -1 where a row has none, 0 where it has a number or several labels.
        labels: names of the classes; empty where a row has more than one answer (tagging).
    """
    if evaluations and all(scores.get("f1") == 0.0 for scores in evaluations):
        count = "the evaluation" if len(evaluations) == 1 else f"all {len(evaluations)} evaluations"
        return [f"f1 was 0.0 in {count}: it has not learnt the task, and nothing can be learnt from it"]
    if evaluations and all(scores.get("pearson") == 0.0 for scores in evaluations):
        return ["it gives every validation row the same number: nothing about a row can be learnt from it"]
    name = _only_class(kept, gold, labels) if labels else None
    if name is None:
        return []
    share = f"{name!r} ({100 * kept['accuracy']:.1f} % of them)"
    return [f"it gives every validation row the class {share}: nothing about a row can be learnt from it"]


def _only_class(scores: Mapping[str, float], gold: np.ndarray, labels: Sequence[str]) -> str | None:
    """The class that a model gives to every row, inferred from its scores; None where it does not give one to all.

    With K classes among the gold labels and a class of share a given to all rows, accuracy is a, macro recall 1 / K
    and macro precision a / K.
    """
    counts = np.bincount(gold[gold >= 0], minlength=len(labels))
    classes = int((counts > 0).sum())
    if classes < 2:
        return None
    expected = {"recall": 1 / classes, "precision": scores["accuracy"] / classes}
    if not all(math.isclose(scores[key], value, rel_tol=1e-9) for key, value in expected.items()):
        return None
    of_share = np.flatnonzero(counts == round(scores["accuracy"] * counts.sum()))
    return labels[of_share[0]] if len(of_share) else None

"""What a report shows of classifiers."""

from __future__ import annotations

from collections.abc import Mapping

from dtrain.tasks.view import View


def doubt(scores: Mapping[str, float], counts: Mapping[str, int]) -> str | None:
    """A classifier that is no better than one label for every row, as one that predicts a single class."""
    if not any(counts.values()):
        return None
    label = max(counts, key=lambda name: counts[name])
    share = counts[label] / sum(counts.values())
    if scores["accuracy"] > share:
        return None
    return f"accuracy {scores['accuracy']:.4f} on the validation rows, where {label!r} for every row has {share:.4f}"


VIEW = View(
    lead="accuracy",
    title="accuracy",
    columns=(("accuracy", "accuracy"), ("f1", "macro F1")),
    spread=("accuracy", "precision", "recall", "f1", "f1_weighted", "loss"),
    loss="cross-entropy",
    details=("per_class", "confusion"),
    doubt=doubt,
    note="Macro F1 is the mean over classes.",
)

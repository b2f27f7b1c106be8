"""What a report shows of taggers."""

from __future__ import annotations

from collections.abc import Mapping

from dtrain.tasks.view import View


def doubt(scores: Mapping[str, float], counts: Mapping[str, int]) -> str | None:
    """A tagger that finds nothing."""
    if scores["f1"] > 0 or not any(counts.values()):
        return None
    return f"F1 0 on the validation rows: it finds none of their {sum(counts.values()):,} entities"


VIEW = View(
    lead="f1",
    title="F1",
    columns=(("precision", "precision"), ("recall", "recall"), ("f1", "F1")),
    spread=(
        *("precision", "recall", "f1"),
        *("precision_macro", "recall_macro", "f1_macro"),
        *("f1_weighted", "accuracy", "loss"),
    ),
    loss="negative log-likelihood",
    details=("per_type", "counts", "examples"),
    doubt=doubt,
    note="Precision, recall and F1 are over all entities; one is found where its type and both ends are right.",
    timed=" and the search for the best tags",
)

"""What a report shows for taggers."""

from __future__ import annotations

from dtrain.tasks.view import View

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
    note="Precision, recall and F1 are over all entities; one is found where its type and both ends are right.",
    timed=" and the search for the best tags",
)

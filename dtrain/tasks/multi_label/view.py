"""What a report shows for multi-label classifiers."""

from __future__ import annotations

from dtrain.tasks.view import View

VIEW = View(
    lead="f1",
    title="micro F1",
    columns=(("f1", "micro F1"), ("f1_macro", "macro F1"), ("exact_match", "exact match")),
    spread=(
        *("precision", "recall", "f1"),
        *("precision_macro", "recall_macro", "f1_macro"),
        *("f1_weighted", "exact_match", "loss"),
    ),
    loss="binary cross-entropy",
    details=("per_class",),
    note="Micro F1 is over all labels of all rows, macro F1 the mean over labels; exact match is the share of rows with all of "
    "their labels and no other.",
)

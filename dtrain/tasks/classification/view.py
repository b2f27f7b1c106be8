"""What a report shows for classifiers."""

from __future__ import annotations

from dtrain.tasks.view import View

VIEW = View(
    lead="accuracy",
    title="accuracy",
    columns=(("accuracy", "accuracy"), ("f1", "macro F1")),
    spread=("accuracy", "precision", "recall", "f1", "f1_weighted", "loss"),
    loss="cross-entropy",
    details=("per_class", "confusion"),
    note="Macro F1 is the mean over classes.",
)

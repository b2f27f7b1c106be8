"""Which scores a report shows, ranks models by, and keeps of a group of seeds: these differ between tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """Keys of `scores` in `evaluation.json`, and how they are called on the page."""

    lead: str  # ranks models; stands in the headline and the plots
    title: str  # of the lead, inside a sentence
    columns: tuple[tuple[str, str], ...]  # of the tables, with their titles
    spread: tuple[str, ...]  # of which a group has mean and deviation
    loss: str  # what `loss` is


CLASSIFICATION = Shown(
    lead="accuracy",
    title="accuracy",
    columns=(("accuracy", "accuracy"), ("f1", "macro F1")),
    spread=("accuracy", "precision", "recall", "f1", "f1_weighted", "loss"),
    loss="cross-entropy",
)
TAGGING = Shown(
    lead="f1",
    title="F1",
    columns=(("precision", "precision"), ("recall", "recall"), ("f1", "F1")),
    spread=(
        "precision",
        "recall",
        "f1",
        "precision_macro",
        "recall_macro",
        "f1_macro",
        "f1_weighted",
        "accuracy",
        "loss",
    ),
    loss="negative log-likelihood",
)


def shown(task: str) -> Shown:
    """Of `data.task`; pairs are classified."""
    return TAGGING if task == "tagging" else CLASSIFICATION

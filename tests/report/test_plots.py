"""What the plots make of results that are out of the ordinary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtrain.report.plots import LINES, training_curves
from dtrain.tasks.registry import VIEWS

HISTORY: list[dict[str, Any]] = [
    {"epoch": 1, "split": "train", "loss": 1.0},
    {"epoch": 1, "split": "valid", "loss": 1.0, "accuracy": 0.5},
]


def test_teachers_that_were_not_trained_take_no_colour_from_the_others(tmp_path: Path) -> None:
    given = [(f"given{number}", [[]]) for number in range(len(LINES))]
    view, path = VIEWS["classification"], tmp_path / "curves.png"
    assert not training_curves(given, "valid", view, path) and not path.exists()
    assert training_curves([*given, ("student", [HISTORY])], "valid", view, path) and path.exists()

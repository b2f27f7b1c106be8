"""Which models are timed by themselves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dtrain.plan import Plan
from dtrain.report import speed
from tests.data.test_sides import prepared


def test_models_of_one_structure_that_read_different_sides_are_timed_on_their_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = prepared(tmp_path)
    chinese, either = (next(s for s in recipe.students if s.name == name) for name in ("chinese", "either"))
    assert chinese.model == either.model and chinese.reads != either.reads

    def measure(models: dict[str, Any], parts: dict[str, Any], *_: Any) -> dict[str, Any]:
        rates = {name: float(len(parts[name].tokens)) for name in models}
        return {"rows_per_second": rates, "rows": 1, "repeats": 1, "milliseconds": {}}

    monkeypatch.setattr(speed, "load", lambda place: SimpleNamespace())
    monkeypatch.setattr(speed, "for_task", lambda model, task: model)
    monkeypatch.setattr(speed, "measure", measure)
    members: list[Any] = [("students", chinese), ("students", either)]
    rates = speed.measure_run(members, "train", Plan(recipe).folder)["rows_per_second"]["cpu_1"]
    assert rates == {
        f"students/{name}": len(data.part("train", f"students@{side}").tokens)
        for name, side in (("chinese", "zh"), ("either", "both"))
    }

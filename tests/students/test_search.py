"""Successive halving: who goes on, and that a decision is made once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dtrain.recipe.schema import Search
from dtrain.students.search import Halving, score_until


class FakePlan:
    """What a search asks of a plan."""

    def __init__(self, names: str, **section: Any) -> None:
        self.recipe = SimpleNamespace(search=Search(**{"epochs": [1, 2], **section}))
        self.search = f"{names} {section}"


SCORES = {"a": 0.5, "b": 0.7, "c": 0.1, "d": 0.7, "e": 0.3}


def test_the_best_share_goes_on_ties_by_name(tmp_path: Path) -> None:
    search = Halving(FakePlan("abcde", keep=0.25), tmp_path / "search.json")  # type: ignore[arg-type]
    assert search.next_epoch == 1
    stopped = search.decide(SCORES, "accuracy")
    assert search.rungs[0]["kept"] == ["b", "d"]  # a quarter of 5, rounded up
    assert list(stopped) == ["a", "e", "c"]
    assert stopped["c"] == "stopped by the search after epoch 1: accuracy 0.1000, place 5 of 5, of which 2 went on"
    assert search.next_epoch == 2
    assert list(search.decide({"b": 0.7, "d": 0.8}, "accuracy")) == ["b"]
    assert search.next_epoch is None
    assert set(search.stopped) == {"a", "b", "c", "e"}


def test_decided_once_and_anew_for_another_search(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    Halving(FakePlan("abcde"), path).decide(SCORES, "loss")  # type: ignore[arg-type]
    assert Halving(FakePlan("abcde"), path).next_epoch == 2  # type: ignore[arg-type]
    assert Halving(FakePlan("abcd"), path).next_epoch == 1  # type: ignore[arg-type]
    assert Halving(FakePlan("abcde", keep=0.1), path).next_epoch == 1  # type: ignore[arg-type]
    path.write_text("damaged", encoding="utf-8")
    assert Halving(FakePlan("abcde"), path).next_epoch == 1  # type: ignore[arg-type]


def test_the_best_score_up_to_an_epoch() -> None:
    entries = [(0.5, 0.1, 9.0), (1.0, 0.4, 8.0), (1.5, 0.9, 1.0), (2.0, 0.2, 2.0)]
    history = [{"split": "valid", "epoch": e, "accuracy": a, "loss": x} for e, a, x in entries]
    history.append({"split": "train", "epoch": 0.5, "loss": 0.0})
    assert score_until(history, "accuracy", 1) == 0.4
    assert score_until(history, "accuracy", 2) == 0.9
    assert score_until(history, "loss", 1) == -8.0
    assert score_until(history, "loss", 0) is None


def test_epochs_must_ascend() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        Search(epochs=[2, 1])

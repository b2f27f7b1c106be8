"""Successive halving: which students continue, that a decision is made only once, and that it uses only scores of this
training.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe.schema import Search
from dtrain.report import tables
from dtrain.runfolder import mark_done, read_json, write_json
from dtrain.stages.distill import _stop_the_worst
from dtrain.students.search import Halving, score_until
from dtrain.training.checkpoint import Checkpoints
from dtrain.training.job import checkpoint_identity
from dtrain.training.monitor import log_hyperparameters
from tests.students.conftest import student


class FakePlan:
    """The part of a plan that a search uses."""

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


def test_a_share_that_is_a_whole_number_is_not_rounded_up(tmp_path: Path) -> None:
    search = Halving(FakePlan("many", keep=0.28), tmp_path / "search.json")  # type: ignore[arg-type]
    search.decide({f"s{n:02d}": n / 25 for n in range(25)}, "accuracy")
    assert len(search.rungs[0]["kept"]) == 7


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


RECIPE = """\
name: r
output_dir: {folder}
data: {{train: package:samples/train.jsonl}}
students:
  - {{name: a, model: {{type: textcnn}}, optimizer: {{lr: {lr}}}}}
  - {{name: b, model: {{type: textcnn}}}}
{more}
"""


class Compared:
    """Two students of a recipe, and the files that an earlier run has left."""

    def __init__(self, folder: Path, lr: float = 0.1, more: str = "search: {epochs: [1], keep: 0.5}") -> None:
        path = folder / "r.yaml"
        path.write_text(RECIPE.format(folder=folder, lr=lr, more=more), encoding="utf-8")
        self.plan = Plan(load_recipe(str(path)))
        self.folder = self.plan.folder

    def history(self, accuracy: float, epoch: float) -> list[dict[str, Any]]:
        scores = {"accuracy": accuracy, "f1": accuracy, "loss": 1.0}
        return [{"split": "valid", "epoch": epoch, "step": 85, **scores}]

    def complete(self, name: str, accuracy: float) -> Path:
        model = self.folder.model("students", name)
        write_json(model / "history.json", self.history(accuracy, 1.0))
        (model / "model.safetensors").write_bytes(b"weights")
        mark_done(model, self.plan.model("students", name))
        return model

    def on_the_way(self, name: str, accuracy: float, epoch: int = 1) -> Path:
        identity = checkpoint_identity(self.plan.model("students", name), "fp32")
        found = Checkpoints(self.folder.checkpoints("students", name), identity)
        position = {"epoch": epoch, "history": self.history(accuracy, epoch)}
        found.save(85 * epoch, {"position": position}, {"weight/w": torch.zeros(1)}, {})
        found.wait()
        return found.path(85 * epoch) / "state.json"

    def decide(self, failed: list[str] | None = None) -> int | None:
        return _stop_the_worst(self.plan, self.folder, failed or [], torch.device("cpu"))


def test_a_complete_model_stays_whatever_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Compared(tmp_path)
    model = run.complete("a", 0.1)
    run.on_the_way("b", 0.9)
    assert run.decide() is None
    assert read_json(run.folder.root / "search.json")["rungs"][0]["kept"] == ["b"]
    assert (model / "model.safetensors").read_bytes() == b"weights"
    assert not (model / "failed.json").exists()
    assert "stopped by the search" not in capsys.readouterr().out


def test_who_is_on_the_way_is_stopped_by_a_complete_one(tmp_path: Path) -> None:
    run = Compared(tmp_path)
    run.complete("a", 0.9)
    state = run.on_the_way("b", 0.1)
    assert run.decide() is None
    failure = read_json(run.folder.model("students", "b") / "failed.json")
    assert failure["final"] and "place 2 of 2" in failure["reason"]
    assert not state.exists()


def test_another_recipe_s_scores_decide_nothing(tmp_path: Path) -> None:
    """An interrupted run leaves checkpoints; then a learning rate is changed."""
    before = Compared(tmp_path, lr=0.1)
    states = [before.on_the_way("a", 0.1), before.on_the_way("b", 0.9)]
    after = Compared(tmp_path, lr=0.2)
    assert after.decide() == 1  # `a` has not reached that epoch yet
    assert not (after.folder.root / "search.json").exists()
    assert all(state.exists() for state in states)
    assert before.decide() is None


def test_a_damaged_state_decides_nothing(tmp_path: Path) -> None:
    run = Compared(tmp_path)
    run.on_the_way("b", 0.9)
    run.on_the_way("a", 0.2)
    state = run.on_the_way("a", 0.1, epoch=2)
    state.write_text(state.read_text(encoding="utf-8").replace("0.1", "0.95"), encoding="utf-8")
    assert run.decide() is None
    assert read_json(run.folder.root / "search.json")["rungs"][0]["scores"] == {"a": 0.2, "b": 0.9}


def test_the_report_names_all_students_that_took_part() -> None:
    """`d` failed in the first stretch and came later, `e` diverged, `a` was complete before and kept its model."""
    rungs = [
        {"epoch": 1, "metric": "f1", "scores": {"a": 0.1, "b": 0.2, "c": 0.9}, "stopped": {"a": "...", "b": "..."}},
        {"epoch": 2, "metric": "f1", "scores": {"c": 0.8, "d": 0.7}, "stopped": {}},
    ]
    failed = [
        {"kind": "teachers", "name": "t", "reason": "late"},
        {"kind": "students", "name": "b", "reason": "place 2"},
    ]
    failed.append({"kind": "students", "name": "e", "reason": "loss is nan"})
    table = tables.search(rungs, failed)
    assert table.headers == ["student", "f1 to epoch 1", "f1 to epoch 2", "stopped"]
    assert table.rows == [
        ["c", "0.9000", "0.8000", ""],
        ["d", "", "0.7000", ""],
        ["b", "0.2000", "", "after epoch 1"],
        ["a", "0.1000", "", ""],
        ["e", "", "", "loss is nan"],
    ]
    assert table.marked == {0, 1, 3}


def test_tensorboard_s_table_shows_what_a_grid_varied(tmp_path: Path) -> None:
    losses = [{"type": "soft_targets", "temperature": 4.0, "weight": 0.3}, {"type": "cross_entropy"}]
    one = student("a", dropout=0.2, losses=losses, optimizer={"lr": 0.01, "weight_decay": 0.1}, teachers=["t"])
    log_hyperparameters(tmp_path, one, one.losses or [], {"accuracy": 0.5, "f1": 0.5, "loss": 1.0})
    found = EventAccumulator(str(tmp_path)).Reload()
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    info = HParamsPluginData.FromString(content).session_start_info.hparams
    shown = {name: value.number_value or value.string_value for name, value in info.items()}
    assert shown["model"] == "textcnn" and shown["losses"] == "soft_targets+cross_entropy" and shown["lr"] == 0.01
    expected = {"losses.0.temperature": 4.0, "losses.0.weight": 0.3, "losses.1.type": "cross_entropy"}
    expected |= {"model.dropout": 0.2, "batch_size": 7, "optimizer.weight_decay": 0.1, "model.widths": "2, 3"}
    assert expected.items() <= shown.items()
    assert "name" not in shown

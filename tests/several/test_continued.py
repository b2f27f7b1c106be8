"""A student of several tasks stops in a batch of any task and goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dtrain.errors import Stopped
from dtrain.plan import Plan
from dtrain.runfolder import file_fingerprint, read_json
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.stages import prepare
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training import state
from dtrain.training.members import Members
from dtrain.training.model_job import ModelJob, train_model
from tests.several.test_student import ALONE, load_text


class StopAt(StopRequest):
    """Asks to stop at the n-th question."""

    def __init__(self, questions: int | None) -> None:
        self.questions, self.reason = questions, "test"

    def anywhere(self) -> bool:
        if self.questions is None:
            return False
        self.questions -= 1
        return self.questions < 0


def train(world: World, job: ModelJob, stop_at: int | None = None) -> dict[str, Any]:
    return train_model(job, world, StopAt(stop_at))


@pytest.mark.parametrize("changes", [["mixing={temperature: 2}"], ["batch_size=null", "batch_tokens=60"]])
def test_bit_for_bit(
    tmp_path: Path, tasks_folder: Path, world: World, monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    """Asked after each step, and with dropout on."""
    monkeypatch.setattr(state, "STOP_EVERY", 1)
    on = ["model.dropout=0.2", "model.encoder.dropout=0.1", "batch_size=16", "evaluate_every=3", "epochs=2"]
    recipe = load_text(tmp_path, tasks_folder, [*ALONE, *(f"students.one.{change}" for change in [*on, *changes])])
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    members = Members(PreparedTasks.open(recipe, plan.folder), world, plan.folder)

    def job(name: str) -> ModelJob:
        made = members.student(recipe.students[0], "identity", {})
        made.final, made.checkpoints = tmp_path / name / "model", tmp_path / name / "checkpoints"
        made.tensorboard = tmp_path / name / "tensorboard"
        return made

    train(world, job("undisturbed"))
    feed = job("feed").prepare()
    losses = feed.losses(feed.make())
    order = feed.feed(losses).epoch(recipe.students[0].seed, 0, *_sizes(changes))
    tasks, stops, step = [feed.feed(losses).task_of(batch) for batch in order], [], 0
    for asked in (0, 1, 0, 2, 1):  # questions until the next stop
        with pytest.raises(Stopped):
            train(world, job("stopped"), asked)
        step += asked + 1
        stops.append(step)
    # Of an epoch's steps, after each of these the next batch was of another task.
    assert {tasks[stop] for stop in stops if stop < len(tasks)} == {"topic", "same", "names"}
    train(world, job("stopped"))
    one, other = tmp_path / "undisturbed" / "model", tmp_path / "stopped" / "model"
    assert file_fingerprint(one / "model.safetensors") == file_fingerprint(other / "model.safetensors")
    assert read_json(one / "history.json") == read_json(other / "history.json")
    assert torch.isfinite(torch.tensor(read_json(one / "metrics.json")["mean"]))


def _sizes(changes: list[str]) -> tuple[int | None, int | None]:
    return (None, 60) if "batch_tokens=60" in changes else (16, None)

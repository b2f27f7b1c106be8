"""The training loop: what is computed does not depend on how it is cut, nor on being stopped."""

from __future__ import annotations

import errno
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dtrain.data import Part
from dtrain.distributed import World
from dtrain.errors import DtrainError, Stopped
from dtrain.losses import build_losses
from dtrain.models import build
from dtrain.recipe.models import BiLSTMSpec
from dtrain.recipe.training import LossSpec, Student
from dtrain.training.adversarial import Adversary
from dtrain.training.checkpoint import Checkpoints
from dtrain.training.classification import Classification
from dtrain.training.engine import Engine
from dtrain.training.evaluation import evaluate_part
from dtrain.training.loop import Diverged, Fit, Position, fit
from dtrain.training.optim import build_optimizer
from dtrain.training.stop import StopRequest


class StopAt(StopRequest):
    """Asks to stop at the n-th question."""

    def __init__(self, questions: int | None) -> None:
        self.questions = questions
        self.reason = "test"

    def anywhere(self) -> bool:
        if self.questions is None:
            return False
        self.questions -= 1
        return self.questions < 0


def spec(**changes: Any) -> Student:
    values = {"name": "s", "model": {"type": "bilstm", "embedding": 6, "hidden": 5, "dropout": 0.3}, "seed": 3,
              "epochs": 4, "batch_size": 7, "optimizer": {"lr": 0.01}, "metric": "accuracy"}  # fmt: skip
    return Student.model_validate(values | changes)


def train(
    world: World, rows: Part, folder: Path, student: Student, stop_at: int | None = None, spoil_at: int | None = None
) -> tuple[dict[str, torch.Tensor], Position]:
    torch.manual_seed(student.seed or 0)
    assert isinstance(student.model, BiLSTMSpec)
    model = build(student.model, vocabulary=30, labels=["even", "odd"], pad_id=0)
    engine = Engine(world, model, build_optimizer(model, student.optimizer), together=False, precision="fp32")
    task = Classification(["even", "odd"], [])
    losses = build_losses(student.losses or [LossSpec(type="cross_entropy")])
    whole = task.loss(losses, rows, {}, torch.device("cpu"))
    adversary = Adversary(student.adversarial, model) if student.adversarial else None
    calls = 0

    def loss(model: torch.nn.Module, index: np.ndarray, progress: float) -> Any:
        nonlocal calls
        calls += 1
        total, sums, counts = whole(model, index, progress)
        return (total * math.nan if calls == spoil_at else total), sums, counts

    job = Fit(
        title="s", spec=student, engine=engine, rows=rows, units=task.units(rows), loss=loss,
        headline=task.headline, adversary=adversary,
        evaluate=lambda m: evaluate_part(m, rows, world, classes=2, precision="fp32", distributed=False),
        checkpoints=folder / "checkpoints", tensorboard=folder / "tb", identity="x", stop=StopAt(stop_at),
    )  # fmt: skip
    best, position, monitor = fit(job)
    monitor.close()
    return best, position


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def without_times(position: Position) -> dict[str, Any]:
    return {k: v for k, v in vars(position).items() if k not in ("seconds", "checkpoint_seconds")}


@pytest.mark.parametrize("stops", [[0], [1, 0], [0, 0, 0, 0, 0], [3, 2]])
@pytest.mark.parametrize(
    "changes", [{}, {"batch_size": None, "batch_tokens": 40}, {"evaluate_every": 4}, {"adversarial": {"type": "fgm"}}]
)
def test_stopped_and_continued_is_bit_for_bit_undisturbed(
    world: World, rows: Part, tmp_path: Path, stops: list[int], changes: dict[str, Any]
) -> None:
    """Dropout on; stopped in the middle of epochs and at their ends (every fifth step is asked)."""
    expected, position = train(world, rows, tmp_path / "undisturbed", spec(**changes))
    for stop in stops:
        with pytest.raises(Stopped):
            train(world, rows, tmp_path / "stopped", spec(**changes), stop_at=stop)
    again, continued = train(world, rows, tmp_path / "stopped", spec(**changes))
    assert_same(again, expected)
    assert without_times(continued) == without_times(position)


def test_it_learns(world: World, rows: Part, tmp_path: Path) -> None:
    _, position = train(world, rows, tmp_path, spec(epochs=25))
    valid = [h for h in position.history if h["split"] == "valid"]
    assert valid[-1]["accuracy"] > 0.95 > valid[0]["accuracy"]


def test_micro_batches_change_nothing_but_rounding(world: World, rows: Part, tmp_path: Path) -> None:
    """Including micro-batches without rows: the last batch has 6 rows, and 8 are cut."""
    plain = {"model": {"type": "bilstm", "embedding": 6, "hidden": 5}, "optimizer": {"type": "sgd", "lr": 0.1}}
    whole, _ = train(world, rows, tmp_path / "1", spec(**plain))
    cut, _ = train(world, rows, tmp_path / "8", spec(**plain, accumulation=8))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)


def test_another_seed_is_another_run(world: World, rows: Part, tmp_path: Path) -> None:
    a, _ = train(world, rows, tmp_path / "a", spec())
    b, _ = train(world, rows, tmp_path / "b", spec(seed=4))
    assert not all(torch.equal(a[name], b[name]) for name in a)


def test_patience_ends_it_and_the_best_is_kept(world: World, rows: Part, tmp_path: Path) -> None:
    best, position = train(world, rows, tmp_path, spec(epochs=60, patience=2, optimizer={"lr": 0.05}))
    valid = [h for h in position.history if h["split"] == "valid"]
    assert position.finished
    assert len(valid) < 60
    top = max(h["accuracy"] for h in valid)
    assert position.best_score == top
    assert position.best_step == next(h["step"] for h in valid if h["accuracy"] == top)
    assert best


def test_metric_loss_is_better_when_smaller(world: World, rows: Part, tmp_path: Path) -> None:
    _, position = train(world, rows, tmp_path, spec(metric="loss", epochs=3))
    valid = [h for h in position.history if h["split"] == "valid"]
    assert -(position.best_score or 0.0) == min(h["loss"] for h in valid)


def test_a_loss_that_is_no_number_ends_it(world: World, rows: Part, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="loss is nan at step 1"):
        train(world, rows, tmp_path, spec(), spoil_at=9)


def test_overflow_without_end_ends_it_and_does_not_advance_the_schedule(
    world: World, rows: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, steps, rates = Engine.step, 0, []

    def step(engine: Engine, clip: float | None = None) -> tuple[torch.Tensor, bool]:
        nonlocal steps
        steps += 1
        rates.append(engine.optimizer.param_groups[0]["lr"])
        return plain(engine, clip) if steps < 40 else (torch.tensor(math.inf), False)

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(
        Diverged, match=r"fp16 overflowed in 51 steps in a row, to step 90; the last good checkpoint is"
    ):
        train(world, rows, tmp_path, spec(epochs=20))
    assert rates[38] != rates[39] and len(rates[39:]) == 51 and len(set(rates[39:])) == 1


def test_evaluated_once_even_when_asked_too_rarely(world: World, rows: Part, tmp_path: Path) -> None:
    best, position = train(world, rows, tmp_path, spec(evaluate_every=10_000))
    assert best
    assert position.best_step == position.step


def test_a_checkpoint_of_another_recipe_is_not_used(
    world: World, rows: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped):
        train(world, rows, tmp_path, spec(), stop_at=0)
    capsys.readouterr()
    section = spec(seed=4).model_dump(mode="json")
    assert Checkpoints(tmp_path / "checkpoints", "another", section).newest() is None
    assert "made with seed 3 (now 4)" in capsys.readouterr().err


def test_a_checkpoint_of_another_recipe_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    for identity, step in (("old", 500), ("new", 100)):
        written = Checkpoints(tmp_path, identity)
        written.save(step, {}, {"x": torch.ones(1)}, {})
        written.close()
    found = Checkpoints(tmp_path, "new").newest()
    assert found is not None
    assert found[0]["step"] == 100
    assert Checkpoints(tmp_path, "old").newest() is None


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    written = Checkpoints(tmp_path, "x", keep=3)
    for step in (2, 4, 6, 8, 10):
        written.save(step, {}, {"x": torch.ones(1)}, {})
    written.close()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-{step:08d}" for step in (6, 8, 10)]


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr("dtrain.training.checkpoint.save_file", lambda *a: gate.wait(30) and save_file(*a))
    written = Checkpoints(tmp_path, "x")
    written.save(2, {}, {"x": torch.ones(1)}, {})  # would wait for the gate for ever if it wrote here
    written.check()
    assert Checkpoints(tmp_path, "x").newest() is None
    gate.set()
    written.wait()
    found = Checkpoints(tmp_path, "x").newest()
    assert found is not None and torch.equal(found[1]["x"], torch.ones(1))
    written.close()


def test_a_write_that_failed_ends_the_training(
    world: World, rows: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dtrain.training.checkpoint.save_file", full)
    with pytest.raises(DtrainError, match=r"step-0000000\d: no space left on its disk"):
        train(world, rows, tmp_path, spec(checkpoint_every=2))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_damaged_checkpoint_is_skipped(
    world: World, rows: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = train(world, rows, tmp_path / "undisturbed", spec())
    with pytest.raises(Stopped):
        train(world, rows, tmp_path, spec(), stop_at=3)
    *older, step = sorted((tmp_path / "checkpoints").glob("step-*"))
    assert len(older) == 1
    content = bytearray((step / "tensors.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (step / "tensors.safetensors").write_bytes(content)
    again, _ = train(world, rows, tmp_path, spec())
    assert "tensors.safetensors is damaged" in capsys.readouterr().err
    assert_same(again, expected)

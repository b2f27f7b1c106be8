"""The training loop: results do not depend on micro-batches, nor on being stopped and continued."""

from __future__ import annotations

import errno
import functools
import itertools
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from dtrain.data import EncodedSplit
from dtrain.engines.engine import Engine, Turn
from dtrain.engines.optim import build_optimizer
from dtrain.errors import DtrainError, Stopped
from dtrain.losses.objective import Objective, build_losses
from dtrain.models import build
from dtrain.recipe.architectures.classifiers import BiLSTMSpec
from dtrain.recipe.training import LossSpec, Student
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.tasks.classification.scoring import evaluate_part
from dtrain.tasks.classification.task import Classification
from dtrain.training import bernoulli, feed
from dtrain.training.adversarial import Adversary
from dtrain.training.feed import Feed
from dtrain.training.job import Diverged, Position, TrainJob
from dtrain.training.loop import fit
from dtrain.training.state import TrainState
from dtrain.training.step import seed_dropout
from dtrain.training.workers import Workers


class StopAt(StopRequest):
    """A request to stop that is visible at the n-th check."""

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


class AskedAt(StopRequest):
    """A request to stop that reaches this rank during the n-th step."""

    def __init__(self, world: World, step: int) -> None:
        self.world, self.step, self.questions = world, step, 0
        self.reason = "test"

    def here(self) -> bool:
        self.questions += 1
        return self.questions > self.step


def train(
    world: World,
    rows: EncodedSplit,
    folder: Path,
    student: Student,
    stop_at: int | None = None,
    spoil_at: int | None = None,
    data_parallel: StopRequest | None = None,
) -> tuple[dict[str, torch.Tensor], Position]:
    torch.manual_seed(student.seed or 0)
    assert isinstance(student.model, BiLSTMSpec)
    model = build(student.model, vocabulary=30, labels=["even", "odd"], pad_id=0)
    task = Classification(["even", "odd"], [])
    losses = build_losses(student.losses or [LossSpec(type="cross_entropy")])
    objective = Objective(model, losses, task.outputs)
    engine = Engine(
        world, objective, build_optimizer(objective, student.optimizer), data_parallel=False, precision="fp32"
    )
    engine.data_parallel = data_parallel is not None  # like one of several ranks, but alone
    adversary = Adversary(student.adversarial, model) if student.adversarial else None
    calls = 0
    whole = objective.parts

    def parts(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        total, sums, counts = whole(*arguments)
        return (total * math.nan if calls == spoil_at else total), sums, counts

    objective.parts = parts  # type: ignore[method-assign]
    collate = functools.partial(task.collate, rows, needs=losses.needs)
    job = TrainJob(
        title="s", spec=student, engine=engine, feed=Feed(rows, collate, task.units(rows), device=world.device),
        headline=task.headline, adversary=adversary,
        evaluate=lambda m: evaluate_part(m, rows, Workers.of(world, "fp32", shared=False), 2),
        checkpoints=folder / "checkpoints", tensorboard=folder / "tb", identity="x", stop=data_parallel or StopAt(stop_at),
    )  # fmt: skip
    best, position, monitor = fit(job)
    monitor.close()
    return best, position


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def without_times(position: Position) -> dict[str, Any]:
    return {
        k: v for k, v in vars(position).items() if k not in ("seconds", "checkpoint_seconds", "communication_share")
    }


@pytest.mark.parametrize("stops", [[0], [1, 0], [0, 0, 0, 0, 0], [3, 2]])
@pytest.mark.parametrize(
    "changes", [{}, {"batch_size": None, "batch_tokens": 40}, {"evaluate_every": 4}, {"adversarial": {"type": "fgm"}}]
)
def test_stopped_and_continued_is_bit_for_bit_undisturbed(
    world: World, rows: EncodedSplit, tmp_path: Path, stops: list[int], changes: dict[str, Any]
) -> None:
    """With dropout; stopped in the middle of epochs and at their ends (every fifth step is tried)."""
    expected, position = train(world, rows, tmp_path / "undisturbed", spec(**changes))
    for stop in stops:
        with pytest.raises(Stopped):
            train(world, rows, tmp_path / "stopped", spec(**changes), stop_at=stop)
    again, continued = train(world, rows, tmp_path / "stopped", spec(**changes))
    assert_same(again, expected)
    assert without_times(continued) == without_times(position)


def test_ranks_that_train_together_stop_one_step_after_they_are_asked(
    world: World, rows: EncodedSplit, tmp_path: Path
) -> None:
    """There are 52 steps, 13 in an epoch."""
    expected, position = train(world, rows, tmp_path / "undisturbed", spec(), data_parallel=AskedAt(world, 99))
    for begin, step in ((0, 1), (2, 12), (13, 50)):
        stop = AskedAt(world, step - begin)
        with pytest.raises(Stopped, match=rf"\(test\) at step {step + 1} of 52"):
            train(world, rows, tmp_path / "stopped", spec(), data_parallel=stop)
        assert stop.questions == step + 1 - begin  # one check in each step
    again, continued = train(world, rows, tmp_path / "stopped", spec(), data_parallel=AskedAt(world, 99))
    assert_same(again, expected)
    assert without_times(continued) == without_times(position)


def test_a_question_to_the_ranks_is_open_during_steps_only(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def work(*values: Any) -> Any:
            done.append(name)
            return plain(*values)

        return work

    def begin_any(flag: bool) -> Callable[[], bool]:
        done.append("asked")
        return noted("answered", lambda: flag)

    for method in ("step", "weights", "state"):
        monkeypatch.setattr(Engine, method, noted(method, getattr(Engine, method)))
    monkeypatch.setattr(world, "begin_any", begin_any)
    train(world, rows, tmp_path, spec(epochs=1, checkpoint_every=6), data_parallel=AskedAt(world, 99))
    assert done == [*["asked", "step", "answered"] * 6, "state"] * 2 + ["asked", "step", "answered", "weights"]


def test_slow_steps_are_asked_after_each(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtrain.training.loop.ASK_SECONDS", 0.0)
    with pytest.raises(Stopped, match="at step 3 of 52"):
        train(world, rows, tmp_path, spec(), stop_at=2)


def test_ranks_that_see_different_checkpoints_do_not_go_on(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        train(world, rows, tmp_path, spec(), data_parallel=AskedAt(world, 6))
    with monkeypatch.context() as patch:
        patch.setattr(world, "gather_objects", lambda step: [step, None])
        with pytest.raises(DtrainError, match=r"see different checkpoints in .*\(by rank: step 7, none\); the same"):
            train(world, rows, tmp_path, spec(), data_parallel=AskedAt(world, 99))
    train(world, rows, tmp_path, spec(), data_parallel=AskedAt(world, 99))


def test_it_learns(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    _, position = train(world, rows, tmp_path, spec(epochs=25))
    valid = [h for h in position.history if h["split"] == "valid"]
    assert valid[-1]["accuracy"] > 0.95 > valid[0]["accuracy"]


def test_micro_batches_change_nothing_but_rounding(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    """Including micro-batches without rows: the last batch has 6 rows and is cut into 8."""
    plain = {"model": {"type": "bilstm", "embedding": 6, "hidden": 5}, "optimizer": {"type": "sgd", "lr": 0.1}}
    whole, _ = train(world, rows, tmp_path / "1", spec(**plain))
    cut, _ = train(world, rows, tmp_path / "8", spec(**plain, accumulation=8))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)


def test_rows_are_ordered_for_the_epochs_that_are_begun_alone(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of many epochs makes its first step as early as a run of few."""
    ordered, order = [], feed.training_batches

    def counted(lengths: np.ndarray, seed: int, epoch: int, **size: Any) -> list[np.ndarray]:
        ordered.append(epoch)
        return order(lengths, seed, epoch, **size)

    monkeypatch.setattr(feed, "training_batches", counted)
    with pytest.raises(Stopped, match="at step 10 of 6500"):
        train(world, rows, tmp_path, spec(epochs=500), stop_at=1)
    assert ordered == [0]


def test_another_seed_is_another_run(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    a, _ = train(world, rows, tmp_path / "a", spec())
    b, _ = train(world, rows, tmp_path / "b", spec(seed=4))
    assert not all(torch.equal(a[name], b[name]) for name in a)


def test_patience_ends_it_and_the_best_is_kept(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    best, position = train(world, rows, tmp_path, spec(epochs=60, patience=2, optimizer={"lr": 0.05}))
    valid = [h for h in position.history if h["split"] == "valid"]
    assert position.finished
    assert len(valid) < 60
    top = max(h["accuracy"] for h in valid)
    assert position.best_score == top
    assert position.best_step == min((h for h in valid if h["accuracy"] == top), key=lambda h: h["loss"])["step"]
    assert best


@pytest.mark.parametrize(
    ("scores", "best", "evaluations"),
    [
        ([(0.0, 0.9), (0.0, 0.7), (0.0, 0.5), (0.0, 0.6)], 3, 3),  # no entity has been found yet, and the loss falls
        ([(0.5, 0.9), (1.0, 0.4), (1.0, 0.3), (1.0, 0.5)], 3, 4),
        ([(0.5, 0.2), (0.6, 0.9), (0.6, 0.9), (0.5, 0.1)], 2, 4),  # the score comes first; the earliest of equals
    ],
)
def test_of_equal_scores_the_one_with_the_lower_loss_is_kept(
    world: World,
    rows: EncodedSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[tuple[float, float]],
    best: int,
    evaluations: int,
) -> None:
    """One evaluation in each epoch of 13 steps. Patience counts evaluations without a better score, whatever the loss
    is.
    """
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(model: torch.nn.Module, *_: Any, **__: Any) -> dict[str, float]:
        accuracy, loss = scores[len(seen)]
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"accuracy": accuracy, "f1": accuracy, "loss": loss}

    monkeypatch.setattr(sys.modules[__name__], "evaluate_part", evaluate)
    kept, position = train(world, rows, tmp_path, spec(patience=2))
    assert (position.best_step, position.best_epoch, position.best_loss) == (13 * best, best, scores[best - 1][1])
    assert position.step == 13 * len(seen) == 13 * evaluations
    assert_same(kept, seen[best - 1])


def test_metric_loss_is_better_when_smaller(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    _, position = train(world, rows, tmp_path, spec(metric="loss", epochs=3))
    valid = [h for h in position.history if h["split"] == "valid"]
    assert -(position.best_score or 0.0) == min(h["loss"] for h in valid)


def test_a_loss_that_is_no_number_ends_it(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="loss is nan at step 1"):
        train(world, rows, tmp_path, spec(), spoil_at=9)


def assert_finite_checkpoints(folder: Path, *steps: int) -> None:
    found = sorted((folder / "checkpoints").glob("step-*"))
    assert [path.name for path in found] == [f"step-{step:08d}" for step in steps]
    for path in found:
        assert all(tensor.isfinite().all() for tensor in load_file(path / "tensors.safetensors").values())


def test_weights_without_bounds_are_no_checkpoint(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    student = spec(optimizer={"type": "sgd", "lr": 1e38}, checkpoint_every=1)
    with pytest.raises(Diverged, match=r"the norm of the weights is inf at step 1$"):
        train(world, rows, tmp_path, student)
    assert_finite_checkpoints(tmp_path)


def test_a_checkpoint_that_could_not_be_written_is_not_called_good(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at step 6, and the loss of the next step is no number."""
    written = 0

    def full(*given: Any) -> None:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(*given)

    monkeypatch.setattr("dtrain.training.checkpoint.save_file", full)
    monkeypatch.setattr("dtrain.training.checkpoint.Checkpoints.check", lambda self: None)  # it is not known yet
    with pytest.raises(Diverged, match=r"the last good checkpoint is .*/step-00000004$"):
        train(world, rows, tmp_path, spec(checkpoint_every=2, evaluate_every=1000), spoil_at=7)


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_weights_that_are_no_numbers_are_no_checkpoint_whatever_the_loss(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    """The loss does not depend on the embedding of padding."""
    plain, steps = Engine.step, 0

    def step(engine: Engine, clip: float | None = None, only: Turn | None = None) -> tuple[torch.Tensor, bool]:
        nonlocal steps
        steps += 1
        ended = plain(engine, clip)
        if steps == 9:
            with torch.no_grad():
                next(engine.module.parameters())[0] = number
        return ended

    monkeypatch.setattr(Engine, "step", step)
    told = rf"the norm of the weights is {number} at step 9; the last good checkpoint is .*/step-00000008$"
    with pytest.raises(Diverged, match=told):
        train(world, rows, tmp_path, spec(checkpoint_every=1))
    assert_finite_checkpoints(tmp_path, 7, 8)


def test_overflow_without_end_ends_it_and_does_not_advance_the_schedule(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, steps, rates = Engine.step, 0, []

    def step(engine: Engine, clip: float | None = None, only: Turn | None = None) -> tuple[torch.Tensor, bool]:
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


def test_evaluated_once_even_when_asked_too_rarely(world: World, rows: EncodedSplit, tmp_path: Path) -> None:
    best, position = train(world, rows, tmp_path, spec(evaluate_every=10_000))
    assert best
    assert position.best_step == position.step


def test_a_write_that_failed_ends_the_training(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dtrain.training.checkpoint.save_file", full)
    with pytest.raises(DtrainError, match=r"step-0000000\d: no space left on its disk"):
        train(world, rows, tmp_path, spec(checkpoint_every=2))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_damaged_checkpoint_is_skipped(
    world: World, rows: EncodedSplit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


@pytest.fixture
def event_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files on a slow disk, named in the order of their making.

    TensorBoard reads the files of a folder in the order of their names, which contain the time in seconds and the
    number of the file; there, 10 comes before 9.
    """
    write = event_file_writer.RecordWriter.write

    def slowly(writer: Any, data: bytes) -> None:
        time.sleep(0.005)
        write(writer, data)

    monkeypatch.setattr(event_file_writer.RecordWriter, "write", slowly)
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=itertools.count(1000).__next__))


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard shows: steps and values by tag (0 for the speed, which differs between runs)."""
    shown = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(point.step, 0.0 if tag.startswith("speed/") else point.value) for point in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
    }


class Killed(BaseException):
    pass


@pytest.mark.parametrize("changes", [{}, {"checkpoint_every": 9}, {"evaluate_every": 6, "checkpoint_every": 4}])
def test_curves_of_a_run_that_was_continued_are_those_of_an_undisturbed_one(
    world: World,
    rows: EncodedSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    event_files: None,
    changes: dict[str, Any],
) -> None:
    """Killed between checkpoints and at one, then stopped, then killed again; 52 steps, 13 an epoch."""
    train(world, rows, tmp_path / "undisturbed", spec(**changes))
    expected = curves(tmp_path / "undisturbed")
    assert {"train/loss", "valid/accuracy", "speed/rows_per_second"} <= expected.keys()
    assert [step for step, _ in expected["train/loss"]] == [13, 20, 26, 39, 40, 52]
    every = changes.get("evaluate_every", 13)
    assert [step for step, _ in expected["valid/accuracy"]] == sorted({*range(every, 52, every), 52})

    folder = tmp_path / "killed"

    def kill_at(step: int) -> None:
        """After SIGKILL only the data that were on disk at that moment exist: neither pending writes nor what `close`
        would write.
        """

        def after_checkpoint(run: TrainState) -> None:
            checkpoint(run)
            if run.position.step == step:
                die(run)

        def after_step(run: TrainState) -> bool:
            if run.position.step == step and not run.checkpoint_due:
                die(run)
            return asks(run)

        def die(run: TrainState) -> None:
            run.checkpoints.wait()
            shutil.copytree(folder, tmp_path / "left")
            raise Killed

        checkpoint, asks = TrainState.checkpoint, TrainState.asks_to_stop.fget  # type: ignore[attr-defined]
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(TrainState, "checkpoint", after_checkpoint)
            patched.setattr(TrainState, "asks_to_stop", property(after_step))
            train(world, rows, folder, spec(**changes))
        shutil.rmtree(folder)
        (tmp_path / "left").rename(folder)

    kill_at(20)
    kill_at(27)
    # In the middle of an epoch, and of the steps over which a point of the curves is averaged.
    with pytest.raises(Stopped):
        train(world, rows, folder, spec(**changes), stop_at=1)
    kill_at(39)
    kill_at(46)
    train(world, rows, folder, spec(**changes))
    assert curves(folder) == expected


def test_dropout_on_a_cpu_is_seeded_as_by_torch() -> None:
    drawn = []
    for seed in (torch.manual_seed, functools.partial(seed_dropout, torch.device("cpu"))):
        seed(2**59 + 7)
        drawn.append(torch.nn.functional.dropout(torch.ones(100)))
    assert torch.equal(*drawn)


def test_masks_are_drawn_by_dtrain_while_it_trains_on_a_cpu(
    world: World, rows: EncodedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    whole = bernoulli.draw

    def counting(count: int, p: float, generator: torch.Generator | None) -> torch.Tensor:
        drawn.append(p)
        return whole(count, p, generator)

    monkeypatch.setattr(bernoulli, "draw", counting)
    _, position = train(world, rows, tmp_path, spec(epochs=1))
    assert drawn == [0.7] * position.step
    torch.empty(3).bernoulli_(0.5)  # torch's own again
    assert len(drawn) == position.step

"""The training loop: results do not depend on micro-batches, nor on being stopped and continued."""

from __future__ import annotations

import errno
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dtrain.data import EncodedSplit
from dtrain.engines.engine import Engine, Turn
from dtrain.errors import DtrainError, Stopped
from dtrain.runtime.distributed import World
from dtrain.training import bernoulli, feed
from dtrain.training.job import Diverged, Position
from dtrain.training.step import seed_dropout
from tests.training import small_run
from tests.training.small_run import AskedAt, spec, train


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

    monkeypatch.setattr(small_run, "evaluate_part", evaluate)
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

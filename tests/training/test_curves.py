"""The curves that training leaves for TensorBoard: those of a continued run are those of an undisturbed one."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from dtrain.data import EncodedSplit
from dtrain.errors import Stopped
from dtrain.runtime.distributed import World
from dtrain.training.state import TrainState
from tests.training.small_run import spec, train


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

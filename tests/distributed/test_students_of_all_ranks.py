"""A student that all ranks train together fails on one of them, or on all; and searches that are interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain.runfolder import read_json
from tests.distributed.forty_rows import write
from tests.distributed.test_many_students import weights
from tests.distributed.test_pipeline import write_data
from tests.processes import ended, start, start_ranks

pytestmark = pytest.mark.distributed
CNN = {"model": {"type": "textcnn", "embedding": 4, "filters": 2}, "teachers": [], "batch_size": 8}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"train": "train.jsonl", "split": {"valid": 0.2}},
    "students": [
        {"name": "whole", **CNN, "epochs": 3, "parallel": "data"},
        {"name": "other", **CNN, "epochs": 1},
    ],
    "launch": {"processes": 2, "timeout": 60},
    "report": {"splits": ["valid"]},
}
RUN = ["run", "recipe.yaml", "--stages", "prepare,distill"]
FAILING = """\
import os, torch
import dtrain.stages.distill as stage
import dtrain.training.loop as loop
from dtrain.__main__ import entry

stage.MEETING_SECONDS = 3.0
step = loop.train_step
error = {"accident": RuntimeError("too hot"), "memory": torch.OutOfMemoryError("no more")}[os.environ["WHAT"]]

def failing(run):
    if run.job.spec.name == "whole" and run.position.step == 6 and os.environ["RANK"] in os.environ["WHERE"]:
        raise error
    step(run)

loop.train_step = failing
entry()
"""
"""Of two ranks, both or one fail in the middle of a step."""


def reason(folder: Path) -> str:
    return str(read_json(folder / "runs/tiny/students/whole/failed.json")["reason"])


@pytest.mark.parametrize("when", ["on the way", "at the end"])
def test_a_checkpoint_that_cannot_be_written_is_that_students_failure(tmp_path: Path, when: str) -> None:
    """Only rank 0 writes; the other rank learns of the failure in the next step, or at the end if there is none."""
    students = [{**RECIPE["students"][0], "epochs": 3 if when == "on the way" else 2}, RECIPE["students"][1]]
    search = {"search": {"epochs": [1]}} if when == "at the end" else {}  # all ranks wait there for the comparison
    students[1]["epochs"] = 2
    folder = write(tmp_path, {**RECIPE, "students": students, **search})
    (folder / "runs/tiny/checkpoints/students").mkdir(parents=True)
    (folder / "runs/tiny/checkpoints/students/whole").touch()
    codes, told = ended(start_ranks(["-m", "dtrain", *RUN], folder))
    assert codes == [0, 0], told
    assert "NotADirectoryError" in reason(folder) or "FileExistsError" in reason(folder)
    assert list(weights(folder / "runs/tiny")) == ["other"]


@pytest.mark.parametrize("what", ["accident", "memory"])
def test_an_error_on_all_ranks_is_that_students_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    codes, told, folder = failing(tmp_path, monkeypatch, WHAT=what, WHERE="01")
    assert codes == [0, 0], told
    assert "no more" in reason(folder) if what == "memory" else "too hot" in reason(folder)
    assert list(weights(folder / "runs/tiny")) == ["other"]


@pytest.mark.parametrize("what", ["accident", "memory"])
def test_an_error_in_one_ranks_step_ends_the_run_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The other rank waits for the gradients of the failed one, and cannot be informed."""
    codes, told, folder = failing(tmp_path, monkeypatch, WHAT=what, WHERE="1")
    assert codes == [1, 1], told
    assert "student whole: failed on rank 1 alone, and the others wait for its part of a step: " in told
    assert not (folder / "runs/tiny/students/whole").exists()


def failing(folder: Path, monkeypatch: pytest.MonkeyPatch, **how: str) -> tuple[list[int], str, Path]:
    """The exit codes, the output on stderr, and the folder."""
    for name, value in how.items():
        monkeypatch.setenv(name, value)
    (folder / "failing.py").write_text(FAILING, encoding="utf-8")
    return *ended(start_ranks(["failing.py", *RUN], write(folder, RECIPE))), folder


ASKED_AFTER_A_COMPARISON = """\
import os, signal
from dtrain.__main__ import entry
from dtrain.students.search import Halving

decide = Halving.decide

def and_asked(search, *arguments):
    stopped = decide(search, *arguments)
    if len(search.rungs) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return stopped

Halving.decide = and_asked
entry()
"""
SEARCHED = """\
name: tiny
data: {train: train.jsonl, split: {valid: 0.2}, vocabulary: {min_count: 1}}
students:
  - name: cnn
    model: {type: textcnn, embedding: 8, filters: 8, dropout: 0.2}
    epochs: 4
    metric: loss
    batch_size: 16
    grid: {optimizer.lr: [0.001, 0.01, 0.03], seed: [1, 2]}
  - {name: lstm, model: {type: bilstm, embedding: 8, hidden: 8}, epochs: 4, metric: loss, batch_size: 16}
placement: {fuse: always}
search: {epochs: [1, 3], keep: 0.5}
launch: {processes: 2, timeout: 60}
"""


def test_a_search_stopped_on_two_ranks_and_continued_on_one(tmp_path: Path) -> None:
    """Stopped while stacked students are trained; on one rank the stacks have other members."""
    for name in ("undisturbed", "stopped"):
        (tmp_path / name).mkdir()
        write_data(tmp_path / name)
        (tmp_path / name / "recipe.yaml").write_text(SEARCHED, encoding="utf-8")
    undisturbed, stopped = (tmp_path / name / "runs/tiny" for name in ("undisturbed", "stopped"))
    codes, told = ended(start_ranks(["-m", "dtrain", *RUN], tmp_path / "undisturbed"))
    assert codes == [0, 0], told
    (tmp_path / "stopped" / "asked.py").write_text(ASKED_AFTER_A_COMPARISON, encoding="utf-8")
    codes, told = ended(start_ranks(["asked.py", *RUN], tmp_path / "stopped"))
    assert codes == [75, 75], told
    assert len(read_json(stopped / "search.json")["rungs"]) == 1
    assert list((stopped / "checkpoints/students").glob("*/step-00000015"))  # an epoch has 12 steps
    assert not weights(stopped)
    codes, told = ended([start(["-m", "dtrain", *RUN, "launch.processes=1"], tmp_path / "stopped")])
    assert codes == [0], told
    assert read_json(stopped / "search.json") == read_json(undisturbed / "search.json")
    assert len(weights(undisturbed)) == 2
    assert weights(stopped) == weights(undisturbed)

"""Requests to stop by any signal, on a single rank, or by a time limit: every rank ends with 75, and the reason is
printed once.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dtrain.errors import Stopped
from dtrain.recipe import load_recipe
from dtrain.runfolder import RunFolder, file_fingerprint, read_json
from dtrain.stages.prepare import prepare
from tests.distributed.forty_rows import write
from tests.processes import ended, start, start_ranks

TEACHER = {"model": {"type": "textcnn", "embedding": 4, "filters": 2}, "epochs": 1, "batch_size": 8}
RECIPE = {
    "name": "tiny",
    "data": {"train": "train.jsonl", "split": {"valid": 0.2}},
    "teachers": [{"name": "cnn", **TEACHER}, {"name": "other", **TEACHER}],
    "launch": {"processes": 2, "timeout": 60},
    "report": {"splits": ["valid"]},
}
LONG = ["teachers.cnn.epochs=5000", "teachers.cnn.checkpoint_every=5", "teachers.cnn.evaluate_every=10000"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe and its data; commands must be started there."""
    return write(tmp_path, RECIPE)


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "runs/tiny/checkpoints/teachers/cnn").glob("step-*"))


def check_whole(checkpoint: Path) -> None:
    sums = read_json(checkpoint / "state.json")["sha256"]
    assert "tensors.safetensors" in sums
    assert {name: file_fingerprint(checkpoint / name) for name in sums} == sums


@pytest.mark.parametrize(
    "name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow), "SIGUSR2"]
)  # SIGUSR1 is tested below, in `evaluate`
def test_a_signal_to_one_rank_stops_both(folder: Path, name: str) -> None:
    ranks = start_ranks(["-m", "dtrain", "run", "recipe.yaml", *LONG, "--stages", "prepare,finetune"], folder)
    deadline = time.monotonic() + 200
    while not checkpoints(folder) and ranks[1].poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks[1].send_signal(signal.Signals[name])
    codes, told = ended(ranks)
    assert codes == [75, 75], told
    assert told.count("stopped on request") == told.count(f"stopped on request ({name}) at step") == 1
    check_whole(checkpoints(folder)[-1])


def test_a_limit_of_time_stops_with_a_checkpoint(tmp_path: Path) -> None:
    """The time limit of the recipe, and that of a SLURM job."""
    for seconds in (16, 60):  # the longer one if the machine is too slow to reach a step within the first
        folders = [write(tmp_path / f"{limit}-{seconds}", RECIPE) for limit in ("recipe", "job")]
        words = ["-m", "dtrain", "run", "recipe.yaml", *LONG, "--stages", "prepare,finetune"]
        own = start([*words, f"launch.time_limit={seconds}"], folders[0])
        job = start([*words, "launch.processes=1"], folders[1], SLURM_JOB_END_TIME=str(int(time.time()) + seconds))
        ends = [ended([process]) for process in (own, job)]
        if all(checkpoints(folder) for folder in folders):
            break
    for folder, (codes, told) in zip(folders, ends, strict=True):
        assert codes == [75], told
        assert told.count("stopped on request (time limit) at step") == 1, told
        check_whole(checkpoints(folder)[-1])


ASKED_MEANWHILE = """\
import os, signal
import dtrain.stages.evaluate as stage
from dtrain.__main__ import entry

evaluate = stage._record

def and_asked(*arguments):
    record = evaluate(*arguments)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)
    return record

stage._record = and_asked
entry()
"""


def test_a_signal_to_one_rank_stops_evaluate_between_two_models(folder: Path) -> None:
    (folder / "asked.py").write_text(ASKED_MEANWHILE)
    codes, told = ended(
        start_ranks(["asked.py", "run", "recipe.yaml", "--stages", "prepare,finetune,evaluate"], folder)
    )
    assert codes == [75, 75], told
    assert told.count("evaluate: stopped on request (SIGUSR1) before teacher other; the same command continues") == 1
    teachers = folder / "runs/tiny/teachers"
    assert (teachers / "cnn/evaluation.json").exists()
    assert not (teachers / "other/evaluation.json").exists()


def test_prepare_stops_between_two_tokenizers(folder: Path) -> None:
    changes = [
        f"data.train={folder}/train.jsonl",
        "teachers.other.model={type: bert, size: tiny, vocabulary_size: 100}",
    ]
    recipe, run = load_recipe(str(folder / "recipe.yaml"), changes), RunFolder(folder / "run")

    class Asked:
        """A request to stop that is visible after the first check."""

        reason, looks = "SIGTERM", 0

        def here(self) -> bool:
            self.looks += 1
            return self.looks > 1

    asked: Any = Asked()
    with pytest.raises(Stopped, match=r"prepare: stopped on request \(SIGTERM\) before tokenizer "):
        prepare(recipe, run, "rows", str, asked)
    encoded = run.data / "encoded"
    (first,) = encoded.iterdir()
    kept = [(path, path.stat().st_mtime_ns) for path in (*first.rglob("*"), *(run.data / "rows").rglob("*"))]
    prepare(recipe, run, "rows", str)
    assert len(list(encoded.iterdir())) == 2
    assert [(path, path.stat().st_mtime_ns) for path, _ in kept] == kept

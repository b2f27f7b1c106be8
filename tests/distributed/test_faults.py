"""Faults during a run: each ends it within a set time, with one clear message, and the same command continues once the
cause is gone. `pytest -s` prints the times that are on the manual's page `failures`. They are times of real launches,
except for faults in files that a command reads, and for the commands before and after a fault, which are forked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from dtrain.runfolder import is_done
from tests.processes import start, start_for_real

RECIPE = """\
name: tiny
seed: 5
data:
  train: train.jsonl
  split: {valid: 0.2}
  vocabulary: {min_count: 1}
teachers:
  - name: cnn
    model: {type: textcnn, embedding: 8, filters: 4}
    epochs: 4
    batch_size: 16
students:
  - name: lstm
    model: {type: bilstm, embedding: 4, hidden: 4}
    epochs: 1
launch: {processes: 2, timeout: 60, stages: {prepare: {processes: 1}}}
report: {latency: false, splits: [valid]}
"""
LONG = ["teachers.cnn.epochs=500", "teachers.cnn.checkpoint_every=5", "teachers.cnn.evaluate_every=400"]
ROWS = '{"text": "球队比赛进球冠军", "label": "sport"}\n{"text": "好吃的餐厅", "label": "food"}\n'
# Longest wait for a launcher, which itself waits 30 s for a worker that was stopped.
LAUNCHER_SECONDS = 40


class Ended(NamedTuple):
    code: int
    told: str  # stderr
    seconds: float  # since the fault


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose data is prepared."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "train.jsonl").write_text(ROWS * 60, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    ended = run(folder, "prepare")
    assert ended.code == 0, ended.told
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for one test."""
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy"


def command(stages: str, *changes: str) -> list[str]:
    """The words of a command to start in the folder: its paths are relative, so that a copy of the folder is prepared,
    too.
    """
    return [sys.executable, "-m", "dtrain", "run", "recipe.yaml", *changes, "--stages", stages]


def run(folder: Path, stages: str, *changes: str) -> Ended:
    begin = time.monotonic()
    process = start(command(stages, *changes)[1:], folder)
    _, told = process.communicate(timeout=400)
    return Ended(process.wait(), told, time.monotonic() - begin)


def finish(process: subprocess.Popen[str]) -> Ended:
    begin = time.monotonic()
    told = process.communicate(timeout=300)[1]
    return Ended(process.returncode, told, time.monotonic() - begin)


@contextlib.contextmanager
def started(folder: Path, *changes: str) -> Iterator[Callable[[], Ended]]:
    """A long `finetune` that has written a checkpoint. Yields a function that waits for its end, to be called after the
    fault.
    """
    process = start_for_real(command("finetune", *LONG, *changes), folder)
    deadline = time.monotonic() + 300
    while not list((folder / "runs/tiny/checkpoints").rglob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)

    try:
        yield lambda: finish(process)
    finally:
        for worker in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            worker.kill()
        process.kill()
        process.wait()


def worker(rank: int, folder: Path) -> psutil.Process:
    """The process of a rank of the launch that was started in the folder."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # A fork has the command line and the variables of its launcher.
            forked = child.name() == f"dtrain rank {rank}"
            begun = child.environ().get("RANK") == str(rank) and "--here" in child.cmdline()
            if child.cwd() == str(folder) and (forked or begun):
                found.append(child)
    return found[0]


@pytest.mark.parametrize("moment", ["as it starts", "in training"])
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_launcher_takes_its_ranks_along(folder: Path, processes: int, moment: str) -> None:
    """Otherwise they would wait for each other, or continue and lock the run folder."""
    words = command("finetune", *LONG, f"launch.processes={processes}")
    starting = moment == "as it starts"  # not forked: the tests' server has already imported everything
    process = start_for_real(words, folder) if starting else start(words[1:], folder)
    deadline = time.monotonic() + 200
    ranks: list[psutil.Process] = []
    while len(ranks) < processes or not (starting or list(folder.rglob("step-*"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
        ranks = psutil.Process(process.pid).children(recursive=True)
        ranks = [rank for rank in ranks if not starting or rank.name().startswith("dtrain rank")]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def check_end(fault: str, ended: Ended, within: float = 60) -> None:
    """The run ended in time, with one message and no traceback."""
    told = [line for line in ended.told.splitlines() if line.startswith(("dtrain: ", "rank "))]
    print(f"\n| {fault} | {ended.seconds:.0f} s | {ended.code} | {re.sub(r'/[^ ]*/runs', 'runs', ' '.join(told))} |")
    assert len(told) == 1, ended.told
    assert "Traceback" not in ended.told
    assert ended.seconds < within


def assert_continues(folder: Path) -> None:
    """Nothing is half-written under a final name, and the next run succeeds."""
    ended = run(folder, "finetune")
    assert ended.code == 0, ended.told
    assert not list((folder / "runs").rglob(".tmp-*"))


def test_a_killed_rank(folder: Path) -> None:
    with started(folder) as end:
        worker(1, folder).kill()
        ended = end()
    check_end("a rank is killed", ended, LAUNCHER_SECONDS)
    assert ended.code == 1
    assert "rank 1 was killed by SIGKILL" in ended.told
    assert_continues(folder)


ABSENT = """\
import sys, time
import dtrain.stages.finetune as stage
from dtrain.__main__ import entry

def run(recipe, world, folder):
    if world.rank == 1:
        time.sleep(100)
    world.any(True)

stage.run = run
entry()
"""


class Waits:
    """Launches that end only after a time-out: they are started one after another and wait at the same time."""

    def __init__(self, prepared: Path, root: Path) -> None:
        self._prepared, self._root = prepared, root
        self._threads = ThreadPoolExecutor()
        self._ends: dict[str, Future[Ended]] = {}

    def __enter__(self) -> Waits:
        with contextlib.ExitStack() as stack:
            for rank in (0, 1):
                folder = self._folder(f"hung-{rank}")
                end = stack.enter_context(started(folder, "launch.timeout=8"))
                worker(rank, folder).send_signal(signal.SIGSTOP)
                self._ends[folder.name] = self._threads.submit(end)
            folder = self._folder("absent")
            (folder / "absent.py").write_text(ABSENT, encoding="utf-8")
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
            launch += ["--main_process_port", "0", "absent.py", "finetune", "recipe.yaml", "launch.timeout=6"]
            self._ends[folder.name] = self._threads.submit(finish, start_for_real(launch, folder))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._threads.shutdown()

    def _folder(self, name: str) -> Path:
        return Path(shutil.copytree(self._prepared, self._root / name))

    def end(self, name: str) -> tuple[Path, Ended]:
        return self._root / name, self._ends[name].result()


@pytest.fixture(scope="module")
def waits(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waits]:
    with Waits(prepared, tmp_path_factory.mktemp("waits")) as found:
        yield found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_hung_rank(waits: Waits, rank: int) -> None:
    folder, ended = waits.end(f"hung-{rank}")
    check_end("a rank hangs (launch.timeout: 8)", ended, 8 + 5 + LAUNCHER_SECONDS)
    assert ended.code == 1
    assert f"dtrain: rank {rank} of 2 gave no sign of life for 8 s (launch.timeout)" in ended.told
    assert_continues(folder)


def test_a_collective_that_a_rank_does_not_join(waits: Waits) -> None:
    _, ended = waits.end("absent")
    told = ended.told.partition("Traceback")[0]  # `accelerate launch` prints a traceback of its own at the end
    check_end("a collective times out (launch.timeout: 6)", ended._replace(told=told), 6 + 30 + LAUNCHER_SECONDS)
    assert ended.code == 1
    assert "dtrain: rank 0 waited in a collective longer than launch.timeout for another rank" in ended.told


def test_a_full_disk(folder: Path) -> None:
    """A file system of a few hundred kilobytes; given room, the same command continues on it."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root, to mount a small file system in a namespace of its own")
    runs = folder / "runs"
    big = "teachers.cnn.model={type: textcnn, embedding: 64, filters: 300}"  # 1 MB of weights
    line = " ".join(f"'{word}'" for word in command("prepare,finetune", big))
    script = f"""
        mount -t tmpfs -o size=1400k tmpfs {runs} || exit 99
        begin=$EPOCHREALTIME
        {line}; echo code $?
        echo seconds $(awk "BEGIN {{print $EPOCHREALTIME - $begin}}")
        find {runs} -name '.tmp-*' -o -name model.safetensors
        mount -o remount,size=100m {runs}
        {line}; echo code $?
        find {runs} -name '.tmp-*' -o -name model.safetensors
    """
    words = ["unshare", "--mount", "bash", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, cwd=folder)
    first, _, second = done.stdout.partition("seconds ")
    assert "code 1" in first, done.stdout + done.stderr
    check_end("the disk is full", Ended(1, done.stderr, float(second.splitlines()[0])))
    assert "no space left on its disk; the same command continues once there is" in done.stderr
    before, _, after = second.partition("code 0")
    assert "model.safetensors" not in before
    assert "model.safetensors" in after, done.stdout + done.stderr
    assert ".tmp-" not in after


def test_a_read_only_run_folder(folder: Path) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root, to mount the folder read-only in a namespace of its own")
    runs = folder / "runs"
    script = f'mount --bind {runs} {runs} && mount -o remount,bind,ro {runs} && exec "$@"'
    begin = time.monotonic()
    words = ["unshare", "--mount", "bash", "-c", script, "bash", *command("finetune")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, cwd=folder)
    ended = Ended(done.returncode, done.stderr, time.monotonic() - begin)
    check_end("the run folder is read-only", ended)
    assert ended.code == 2
    assert "cannot be written to" in ended.told


def test_a_vanished_source_file(folder: Path) -> None:
    (folder / "train.jsonl").unlink()
    ended = run(folder, "finetune")
    check_end("a source file has vanished", ended)
    assert ended.code == 2
    assert "train.jsonl" in ended.told


def test_a_corrupt_row(folder: Path) -> None:
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "坏\n')
    ended = run(folder, "prepare")
    check_end("a row is corrupt", ended)
    assert ended.code == 2
    assert "train.jsonl:121" in ended.told


def test_a_vanished_prepared_file(folder: Path) -> None:
    """A file of a finished stage is removed: the next stage reports it, and `prepare` makes it again."""
    encoded = folder / "runs/tiny/data/encoded"
    victim = next(path for path in sorted(encoded.rglob("*.arrow")))
    victim.unlink()
    ended = run(folder, "finetune")
    check_end("a prepared file has vanished", ended)
    assert ended.code == 2
    assert "`prepare` is not complete for this recipe; run it first" in ended.told
    assert run(folder, "prepare,finetune").code == 0


def test_a_loss_that_is_no_number(folder: Path) -> None:
    broken = ["teachers.cnn.optimizer={type: sgd, lr: 1e30}", "teachers.cnn.clip="]
    ended = run(folder, "finetune", *broken)
    check_end("the loss is NaN", ended)
    assert ended.code == 1
    assert re.search(r"dtrain: teacher cnn: .*(nan|inf) at step \d+", ended.told), ended.told
    assert not (folder / "runs/tiny/teachers/cnn").exists()
    assert not is_done(folder / "runs/tiny/teachers/cnn", "any")

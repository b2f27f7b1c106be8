"""Two to eight ranks on as many GPUs, over NCCL: engines compared with one plain optimizer, overflow on one rank, the
bytes of stores, and faults with their times and exit codes, compared with the manual's page `failures`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dtrain.runfolder import file_fingerprint
from tests.gpu.here import ON_GPU, environment, run, run_ranks
from tests.gpu.pretended import recipes

pytestmark = pytest.mark.gpu(2)

ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
RANKS = min(8, torch.cuda.device_count()) if ON_GPU else 2
WORKER = Path(__file__).parent.parent / "distributed" / "engine_worker.py"
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes", str(RANKS)]


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for way in ENGINES:
        for optimizer in ("lamb", "adamw"):
            found[f"{way}-{optimizer}"] = {"chain": [way], "steps": 8, "optimizer": optimizer, "clip": 0.05}
        found[f"{way}-bf16"] = {"chain": [way], "steps": 8, "optimizer": "adamw", "precision": "bf16"}
        overflow = {"precision": "fp16", "overflow": [1, 2], "skipped": [2]}
        found[f"{way}-overflow"] = {"chain": [way], "steps": 4, **overflow}
    found["moved"] = {"chain": ["ddp", "zero2", "fsdp2", "zero3"], "steps": 3, "optimizer": "adamw"}
    return {name: {**setting, "folder": str(folder)} for name, setting in found.items()}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engines")
    asked, found = folder / "settings.json", folder / "results.json"
    asked.write_text(json.dumps(settings(folder)), encoding="utf-8")
    codes, told = run_ranks([WORKER, asked, found], folder, RANKS)
    assert codes == [0] * RANKS, told[-6000:]
    return json.loads(found.read_text(encoding="utf-8"))


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
@pytest.mark.parametrize("way", ENGINES)
def test_engines_train_like_one_plain_optimizer(engines: dict[str, Any], way: str, optimizer: str) -> None:
    """The reference is one process on a CPU. Its kernels round differently, but by far less than an error in the method
    would cause.
    """
    result = engines[f"{way}-{optimizer}"]
    assert result["losses"] == pytest.approx(result["undisturbed"], abs=1e-4)
    assert result["error"] < 1e-2
    assert result["agreed"] and result["whole"]


@pytest.mark.parametrize("way", ENGINES)
def test_bf16_is_near(engines: dict[str, Any], way: str) -> None:
    result = engines[f"{way}-bf16"]
    assert result["losses"] == pytest.approx(result["undisturbed"], abs=3e-2)


@pytest.mark.parametrize("way", ENGINES)
def test_an_overflow_on_one_rank_skips_the_step_on_all(engines: dict[str, Any], way: str) -> None:
    result = engines[f"{way}-overflow"]
    assert result["applied"] == [True, True, False, True]
    assert result["agreed"]


def test_a_training_moves_between_engines(engines: dict[str, Any]) -> None:
    result = engines["moved"]
    assert result["losses"] == pytest.approx(result["undisturbed"], abs=1e-4)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = recipes.write(tmp_path_factory.mktemp("ranks"))["pairs"]
    path.write_text(path.read_text().replace("precision: fp16", "precision: bf16"))
    return path


def stores(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_fingerprint(p) for p in sorted(folder.rglob("knowledge/**/*.arrow"))}


def test_the_store_has_the_same_bytes_on_one_rank_and_on_all(recipe: Path) -> None:
    """On GPUs of one kind, batches and kernels do not depend on the number of ranks."""
    folder = recipe.parent / "stores"
    words = ["-m", "dtrain", "run", recipe, f"output_dir={folder}", f"launch.processes={RANKS}"]
    done = run([*words, "--stages", "prepare,finetune,precompute"], recipe.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    of_all = stores(folder)
    assert of_all
    shutil.rmtree(folder / "pairs" / "knowledge")
    done = run([*words[:-1], "launch.processes=1", "--stages", "precompute"], recipe.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert stores(folder) == of_all


# --- faults ----------------------------------------------------------------------------------------------------------

LONG = ["teachers.bert.epochs=2000", "teachers.bert.checkpoint_every=5", "teachers.bert.evaluate_every=10000"]


@contextlib.contextmanager
def training(recipe: Path, folder: Path, program: list[str | Path], *changes: str) -> Iterator[subprocess.Popen[str]]:
    """A running launch that has written a checkpoint."""
    words = [*program, recipe, f"output_dir={folder}", f"launch.processes={RANKS}", *LONG, *changes]
    whole = [sys.executable, *map(str, words), "--stages", "prepare,finetune"]
    log = (folder / "told.txt").open("w+")
    process = subprocess.Popen(whole, cwd=recipe.parent, env=environment(), stdout=log, stderr=log, text=True)
    try:
        deadline = time.monotonic() + 200
        while not list(folder.rglob("step-*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()
        log.close()


def rank(number: int, process: subprocess.Popen[str]) -> psutil.Process:
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(number) and "--here" in child.cmdline():
                return child
    raise AssertionError(f"no rank {number}")


@pytest.mark.parametrize(
    ("how", "within", "told"),
    [
        (signal.SIGKILL, 45, "rank 1 was killed by SIGKILL"),
        (signal.SIGSTOP, 8 + 5 + 45, "rank 1 of"),  # launch.timeout, a heartbeat, the time that the launcher waits
    ],
)
def test_a_lost_rank_ends_the_run_in_time(recipe: Path, tmp_path: Path, how: int, within: float, told: str) -> None:
    with training(recipe, tmp_path, ["-m", "dtrain", "run"], "launch.timeout=8") as process:
        rank(1, process).send_signal(how)
        begin = time.monotonic()
        code = process.wait(timeout=200)
        seconds = time.monotonic() - begin
    found = (tmp_path / "told.txt").read_text()
    print(f"\n| {signal.Signals(how).name} | {seconds:.0f} s | {code} |")
    assert code == 1
    assert told in found
    assert "Traceback" not in found
    assert seconds < within


def test_a_rank_that_fails_ends_the_others_in_time(recipe: Path, tmp_path: Path) -> None:
    """Under NCCL the other ranks wait for ever for the failed rank's part of a collective, and get no error."""
    done = run(["-m", "dtrain", "run", recipe, f"output_dir={tmp_path}", "--stages", "prepare"], recipe.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    program = Path(__file__).with_name("failing_rank.py")
    begin = time.monotonic()
    words = [*LAUNCH, program, "finetune", recipe, f"output_dir={tmp_path}", *LONG, "launch.timeout=300"]
    done = run(words, recipe.parent)
    seconds = time.monotonic() - begin
    print(f"\n| raises | {seconds:.0f} s with the start | {done.returncode} |")
    assert done.returncode == 1
    assert "this rank was made to fail" in done.stderr + done.stdout
    assert seconds < 120  # much sooner than after launch.timeout

"""Whole runs that are killed at random moments, under every way of sharding: each continues to the bytes of an
undisturbed run.

KILLS=200 python -m pytest -m slow tests/distributed/test_kills.py     200 in all, spread over the ways
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from safetensors import safe_open

from dtrain.runfolder import DONE, file_fingerprint, is_done, read_json

sys.path.insert(0, str(Path(__file__).parent))
from test_pipeline import write_data, write_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WAYS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
KILLS = int(os.environ.get("KILLS", "50")) // len(WAYS)
# The first output of each stage; the last one that exists shows how far a run had come.
BEGUN = {
    "prepare": "data",
    "finetune": "teachers",
    "precompute": "knowledge",
    "distill": "students",
    "report": "report",
}
PATIENCE = 120  # seconds until every process of a run that lost one has ended


def start(recipe: Path, way: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "dtrain", "run", recipe, f"launch.stages.finetune.accelerate_config={way}"]
    words += ["teachers.0.optimizer.type=lamb", "teachers.0.checkpoint_every=4", "students.0.checkpoint_every=4"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, words)], stdout=pipe, stderr=subprocess.STDOUT, text=True)


def bytes_of(run: Path) -> dict[str, str]:
    """The bytes of all files with results."""
    kinds = ("model.safetensors", "*.arrow", "evaluation.json")
    files = [path for kind in kinds for path in run.rglob(kind) if "data" not in path.relative_to(run).parts]
    return {str(path.relative_to(run)): file_fingerprint(path) for path in sorted(files)}


def check_final_names(run: Path) -> None:
    """Files under final names are complete."""
    for path in [p for p in run.rglob("*") if p.is_file() and ".tmp-" not in str(p)]:
        if path.name == DONE:
            assert is_done(path.parent, read_json(path)["fingerprint"]), path
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert list(file.keys()), path
        elif path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                stored = "knowledge" in path.parts  # files of `datasets` are in the stream format
                (pa.ipc.open_file(source) if stored else pa.ipc.open_stream(source)).read_all()


def kill_someone(process: subprocess.Popen[str], draw: random.Random) -> None:
    """SIGKILL to one process of the run, or to all."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    victims = family if draw.random() < 0.2 else [draw.choice(family)]
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait(PATIENCE)
    _, alive = psutil.wait_procs(family[1:], timeout=PATIENCE)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "a process hangs"


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_random_moments(way: str, tmp_path: Path) -> None:
    draw = random.Random(f"{way} {KILLS}")
    write_data(tmp_path)
    recipe = write_recipe(tmp_path, 2)
    run = tmp_path / "runs" / "tiny"
    begin = time.perf_counter()
    undisturbed = start(recipe, way)
    told, _ = undisturbed.communicate(timeout=600)
    assert undisturbed.returncode == 0, told
    whole = time.perf_counter() - begin
    expected = bytes_of(run)
    assert len(expected) > 10
    run.rename(tmp_path / "undisturbed")

    killed: Counter[str] = Counter()
    ended = 0
    while killed.total() < KILLS:
        process = start(recipe, way)
        try:
            process.wait(draw.uniform(0.1, whole))
        except subprocess.TimeoutExpired:
            killed[([stage for stage, place in BEGUN.items() if (run / place).exists()] or ["start"])[-1]] += 1
            kill_someone(process, draw)
            check_final_names(run)
            print(f"{way}: {killed.total()} of {KILLS} kills, {dict(killed)}", flush=True)
        told = process.communicate(timeout=PATIENCE)[0]
        if process.returncode == 0:
            ended += 1
            assert bytes_of(run) == expected, told
            run.rename(tmp_path / f"ended-{ended}")
    process = start(recipe, way)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    assert bytes_of(run) == expected
    print(f"{way}: {dict(killed)} killed, {ended + 1} runs ended with the bytes of the undisturbed one")

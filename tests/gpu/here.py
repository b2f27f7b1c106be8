"""The device on which the tests of this folder run: normally a GPU.

To check the code of the tests, they can also run on CPUs with DTRAIN_TEST_DEVICE=cpu, or on a simulated device
(`pretended/start.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.processes import free_port

ON_GPU = os.environ.get("DTRAIN_TEST_DEVICE") != "cpu"
PRETENDED = os.environ.get("DTRAIN_TEST_DEVICE") == "pretended"
DEVICE = "cuda" if ON_GPU else "cpu"
ROOT = Path(__file__).parent.parent.parent


def environment() -> dict[str, str]:
    """The environment of a command: this checkout on the path, and no GPU if the tests are tried on CPUs."""
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    return own if ON_GPU else own | {"CUDA_VISIBLE_DEVICES": ""}


def run(words: Sequence[str | Path], folder: Path, seconds: float = 400) -> subprocess.CompletedProcess[str]:
    """Run a Python command in a process of its own: after CUDA has been initialised, forked processes cannot use it."""
    whole = [sys.executable, *(str(word) for word in words)]
    return subprocess.run(whole, cwd=folder, env=environment(), capture_output=True, text=True, timeout=seconds)


def run_ranks(words: Sequence[str | Path], folder: Path, ranks: int, seconds: float = 400) -> tuple[list[int], str]:
    """Run the same command as ranks of one machine; returns their exit codes and their output."""
    place = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    whole = [sys.executable, *(str(word) for word in words)]
    started = []
    for rank in range(ranks):
        own = {name: str(value) for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
        log = (folder / f"rank-{rank}.log").open("w+")
        started.append((subprocess.Popen(whole, cwd=folder, env=environment() | own, stdout=log, stderr=log), log))
    codes, told = [], ""
    try:
        for process, _ in started:
            codes.append(process.wait(timeout=seconds))
    finally:
        for process, log in started:
            process.kill()
            process.wait()
            log.seek(0)
            told += log.read()
            log.close()
    return codes, told

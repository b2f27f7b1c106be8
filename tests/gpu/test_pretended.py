"""A recipe for each kind of task, from raw data to the report, on a simulated CUDA device: no operation mixes tensors
of the device and the CPU, and the host waits within steps only where `host_waits.py` says so.

This does not test cuDNN, NCCL, kernels, streams, races and memory. There is one process here, and two in
`test_pretended_ranks.py`.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dtrain.losses import loss_names
from dtrain.recipe import load_recipe
from tests.gpu.host_waits import HOST_WAITS
from tests.gpu.pretended import recipes

pytestmark = pytest.mark.distributed  # starts a process of its own, which takes over a minute

ROOT = Path(__file__).parent.parent.parent
SCALE = 2.0**21  # the initial loss scale of float16, so large that the first steps overflow
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return recipes.write(tmp_path_factory.mktemp("pretended"))


@pytest.fixture(scope="module")
def results(files: dict[str, Path]) -> Results:
    """The results of one process that runs all recipes; the simulated device is installed before torch is imported."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, to build a CUDA backend that does nothing")
    if "+cpu" not in importlib.metadata.version("torch"):
        pytest.skip("needs a torch without CUDA: this one has a backend of its own")
    folder = next(iter(files.values())).parent
    jobs, found = folder / "jobs.json", folder / "results.json"
    named = [{"name": t, "argv": ["run", str(path), "--here"], "scale": SCALE} for t, path in files.items()]
    jobs.write_text(json.dumps(named), encoding="utf-8")
    words = [sys.executable, "-m", "tests.gpu.pretended.drive", str(jobs), str(found)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(found.read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", recipes.RECIPES)
def test_every_stage_runs_and_mixes_nothing(results: Results, task: str) -> None:
    result = results[task]
    assert result["code"] == 0, result["told"]
    assert "Traceback" not in result["told"]
    assert result["steps"] > 5


@pytest.mark.parametrize("task", recipes.RECIPES)
def test_the_host_waits_where_the_table_says(results: Results, task: str) -> None:
    found = {(file, function, kind) for file, function, kind, _ in results[task]["waits"]}
    assert found - HOST_WAITS.keys() == set(), "give the host no reason to wait, or say it in host_waits.py"


def test_the_table_of_waits_is_current(results: Results) -> None:
    found = {(file, function, kind) for result in results.values() for file, function, kind, _ in result["waits"]}
    assert HOST_WAITS.keys() - found == set()


# The models of `informed` are LSTMs and discriminators, which compute in float32 even under autocast, so nothing
# overflows.
@pytest.mark.parametrize("task", sorted(recipes.RECIPES.keys() - {"informed"}))
def test_float16_overflows_and_goes_on(results: Results, task: str) -> None:
    assert 0 < results[task]["skipped"] < results[task]["steps"]


def test_students_train_in_every_way(results: Results) -> None:
    told = results["classification"]["told"]
    for way in ("as one stacked model", "learning from each other", "on CUDA streams side by side"):
        assert f": {way}" in told


def test_students_share_one_pass_of_their_teacher(results: Results) -> None:
    assert ": side by side, with one pass of their teacher for all" in results["layers"]["told"]


def test_every_loss_is_among_them(files: dict[str, Path]) -> None:
    used: set[str] = set()
    for path in files.values():
        recipe = load_recipe(str(path), [])
        used |= {loss.type for student in recipe.students for loss in student.all_losses}
    assert set(loss_names()) - used == set(), "add it to a student of tests/gpu/pretended/recipes.py"

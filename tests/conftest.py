"""What all tests share: one thread, no network, a world of one, the markers that follow from where a test is, the real data."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch or transformers are imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
# A thread that waits for another sleeps. Spinning, two ranks or tests on one core take each other's time: on two cores
# with five other processes, a run of seconds took minutes.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tests start their own launches; what a launcher around pytest says is not for them.
for _name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

if TYPE_CHECKING:
    from dtrain.runtime.distributed import World

ROOT = Path(__file__).parent.parent
BY_FOLDER = {"distributed": "distributed", "slurm": "slurm"}
# Folders of numbers that a CPU's kernels round, and the files among them that have none.
KERNELS = ("models", "losses", "training", "students")
NO_KERNELS = [
    "test_autoclasses",
    "test_card_head",
    "test_checkpoint",
    "test_communication",
    "test_convert",
    "test_keys",
    "test_loss_registry",
    "test_model_folder",
    "test_placement",
    "test_plan",
    "test_precision",
    "test_remarks",
    "test_search",
    "test_shared_tokenizers",
    "test_sharding",
]


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all tests but those on GPUs: the others compare bits of a CPU, and start more ranks than GPUs."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder and by the fixtures they ask for; skip GPU tests where there are none, or too few."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in BY_FOLDER:
            item.add_marker(BY_FOLDER[folder])
        if folder in KERNELS and item.path.stem not in NO_KERNELS:
            item.add_marker("kernels")
        if "data_folder" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for item in on_gpu:
            marker = item.get_closest_marker("gpu")
            needed = marker.args[0] if marker is not None and marker.args else 1
            # tests/gpu can be tried on CPUs: that their own code has no slip is seen there, and no more.
            tried = os.environ.get("DTRAIN_TEST_DEVICE") == "cpu" and item.path.parent == ROOT / "tests" / "gpu"
            if gpus < needed and not tried:
                item.add_marker(pytest.mark.skip(reason=_too_few(needed, gpus)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread for commands that a test runs in its own process, too: they would take every core of the machine."""
    distributed = sys.modules.get("dtrain.runtime.distributed")
    if distributed is not None:
        distributed.World.threads = 1


def _too_few(needed: int, gpus: int) -> str:
    if not gpus:
        return "needs a CUDA GPU, and this machine has none, or hides them: choose the tests with -m gpu"
    return f"needs {needed} CUDA GPUs, and this machine has {gpus}"


@pytest.fixture(scope="session")
def world() -> World:
    """This process alone."""
    import torch

    from dtrain.runtime.distributed import connect

    alone = connect()
    torch.set_num_threads(1)
    return alone


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data sets (tnews/, thucnews/, sst2/, ...), beside the checkout; absent for most people."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data is not here (../shared/data from the repository's root)")
    return folder

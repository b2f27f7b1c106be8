"""Settings and fixtures for all tests: one thread, no network, a world of one process, markers by folder, the real
data.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Set before torch or transformers are imported; every process that a test starts inherits these variables.
os.environ["OMP_NUM_THREADS"] = "1"
# Threads that wait for others sleep instead of spinning. If they spin, ranks or tests that share a core slow each other
# down: on two cores with five other processes, a run of seconds took minutes.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tests start their own launches, so the variables of a launcher around pytest must not reach them.
for _name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

if TYPE_CHECKING:
    from dtrain.runtime.distributed import World

ROOT = Path(__file__).parent.parent
BY_FOLDER = {"distributed": "distributed", "slurm": "slurm"}
# Folders with tests whose results depend on the rounding of a CPU's kernels, and the files in them whose results do
# not.
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
    """Hide the GPUs from all tests but those on GPUs: the others compare results of a CPU bit for bit, and start more
    ranks than there are GPUs.
    """
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
            # The tests in tests/gpu can be tried on CPUs. This checks the code of the tests, and nothing about GPUs.
            tried = os.environ.get("DTRAIN_TEST_DEVICE") == "cpu" and item.path.parent == ROOT / "tests" / "gpu"
            if gpus < needed and not tried:
                item.add_marker(pytest.mark.skip(reason=_too_few(needed, gpus)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Use one thread also for commands that a test runs in its own process, which would otherwise use all cores."""
    distributed = sys.modules.get("dtrain.runtime.distributed")
    if distributed is not None:
        distributed.World.threads = 1


def _too_few(needed: int, gpus: int) -> str:
    if not gpus:
        return "needs a CUDA GPU, and this machine has none, or hides them: choose the tests with -m gpu"
    return f"needs {needed} CUDA GPUs, and this machine has {gpus}"


@pytest.fixture(scope="session")
def world() -> World:
    """A world of this process alone."""
    import torch

    from dtrain.runtime.distributed import connect

    alone = connect()
    torch.set_num_threads(1)
    return alone


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real data sets (tnews/, thucnews/, sst2/, ...), beside the checkout; skip the test where they are missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data is not here (../shared/data from the repository's root)")
    return folder

"""Whole runs on one GPU: each kind of task, two ranks that share the GPU over gloo, and ZeRO with a single rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dtrain.recipe import load_recipe
from dtrain.runfolder import file_fingerprint
from dtrain.stages import of_run
from tests.gpu.here import ON_GPU, run, run_ranks
from tests.gpu.pretended import recipes

pytestmark = pytest.mark.gpu

ALONE = ["--stages", "prepare,finetune,precompute"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    written = recipes.write(tmp_path_factory.mktemp("gpu"))
    if not ON_GPU:
        for path in written.values():
            path.write_text(path.read_text().replace("precision: fp16", "precision: bf16"))
    return written


@pytest.mark.parametrize("task", recipes.RECIPES)
def test_a_whole_run(files: dict[str, Path], task: str) -> None:
    recipe = load_recipe(str(files[task]), [])
    if recipe.pretrain is not None:
        pytest.importorskip("jieba")
    stages = ",".join(stage.name for stage in of_run(recipe) if stage.name != "report")  # the report needs no GPU
    done = run(["-m", "dtrain", "run", files[task], "--stages", stages], files[task].parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def stores(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_fingerprint(p) for p in sorted(folder.rglob("knowledge/**/*.arrow"))}


def test_two_ranks_share_a_gpu_over_gloo_and_store_the_same_bytes(files: dict[str, Path]) -> None:
    """The batches of a store do not depend on the number of ranks: the same batch, kernel and device give the same
    bytes.
    """
    path = files["pairs"]
    folder = path.parent / "shared"
    words = ["-m", "dtrain", "run", path, f"output_dir={folder}", "launch.backend=gloo", "launch.processes=2"]
    done = run([*words, *ALONE], path.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    of_two = stores(folder)
    assert of_two
    shutil.rmtree(folder / "pairs" / "knowledge")
    done = run([*words[:-1], "launch.processes=1", "--stages", "precompute"], path.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert stores(folder) == of_two


@pytest.mark.parametrize("way", ["fsdp2", "zero2"])
def test_sharded_over_gloo(files: dict[str, Path], way: str) -> None:
    path = files["pairs"]
    changes = [f"output_dir={path.parent / way}", f"launch.accelerate_config={way}", "launch.processes=2"]
    if way == "zero2" and ON_GPU:
        pytest.skip("DeepSpeed on GPUs needs NCCL, and NCCL a GPU for each rank")
    words = ["-m", "dtrain", "run", path, *changes, "launch.backend=gloo", "--stages", "prepare,finetune"]
    done = run(words, path.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_zero_over_a_world_of_one(tmp_path: Path) -> None:
    found = tmp_path / "zero.json"
    codes, told = run_ranks([Path(__file__).with_name("zero_alone.py"), found], tmp_path, 1)
    assert codes == [0], told[-4000:]
    losses = json.loads(found.read_text())
    for stage in ("zero1", "zero2", "zero3"):
        assert losses[stage] == pytest.approx(losses["plain"], abs=1e-4), stage
    assert losses["plain"][-1] < losses["plain"][0]

"""Two ranks on the simulated CUDA device, over gloo: DDP and FSDP2 train a recipe's teachers and continue from each
other's checkpoints.

ZeRO cannot be tested like this: DeepSpeed copies by memory addresses, which tensors of the simulated device do not
have.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dtrain.runfolder import file_fingerprint
from tests.gpu.here import run_ranks
from tests.gpu.host_waits import HOST_WAITS
from tests.gpu.pretended import recipes

pytestmark = pytest.mark.distributed

WAYS = ("ddp", "fsdp2")
PROGRAM = Path(__file__).parent / "pretended" / "ranks.py"
SETTINGS: dict[str, dict[str, Any]] = {
    **{way: {"chain": [way], "steps": 5, "optimizer": "lamb", "clip": 0.05, "accumulation": 2} for way in WAYS},
    "moved": {"chain": ["ddp", "fsdp2", "ddp"], "steps": 2, "optimizer": "adamw"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one launch, which has run everything."""
    if shutil.which("g++") is None or "+cpu" not in importlib.metadata.version("torch"):
        pytest.skip("needs g++, and a torch without CUDA")
    place = tmp_path_factory.mktemp("ranks")
    settings, jobs, results = (place / name for name in ("settings.json", "jobs.json", "results.json"))
    settings.write_text(json.dumps({name: {**s, "folder": str(place)} for name, s in SETTINGS.items()}))
    (recipe,) = recipes.write(place, {"spread": recipes.SPREAD}).values()
    told = ["run", str(recipe), "--here", "--stages", "prepare,finetune,precompute"]
    asked = [{"name": way, "way": way, "argv": [*told, f"output_dir={place}/{way}"], "scale": 2.0**21} for way in WAYS]
    jobs.write_text(json.dumps(asked))
    codes, said = run_ranks([PROGRAM, settings, jobs, results], place, 2, 900)
    of_jobs = [path.read_text() for path in sorted(place.glob("results.json-jobs-*"))]
    assert codes == [0, 0], said[-4000:] + "".join(of_jobs)[-6000:]
    return place


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_teachers_train_on_two_ranks_without_a_mix(folder: Path, way: str, rank: int) -> None:
    result = json.loads((folder / f"results.json-jobs-{rank}.json").read_text())[way]
    assert result["code"] == 0, result["told"]
    assert 0 < result["skipped"] < result["steps"]  # float16 overflowed, and training continued
    assert {(file, function, kind) for file, function, kind, _ in result["waits"]} - HOST_WAITS.keys() == set()


@pytest.mark.parametrize("name", SETTINGS)
def test_they_train_like_one_plain_optimizer(folder: Path, name: str) -> None:
    result = json.loads((folder / "results.json").read_text())[name]
    assert result["error"] < 1e-5
    assert result["losses"] == pytest.approx(result["undisturbed"], abs=1e-5)
    assert result["agreed"] and result["whole"]


def test_both_ways_store_answers_of_every_row(folder: Path) -> None:
    of_ways = [sorted(file_fingerprint(p) for p in (folder / way).rglob("knowledge/**/*.arrow")) for way in WAYS]
    assert [len(found) for found in of_ways] == [6, 6]

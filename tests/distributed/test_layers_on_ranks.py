"""Losses between the layers of a student and its online teacher: the same result as in one process, under every engine
and across changes of the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ended, start_ranks

pytestmark = pytest.mark.distributed

WORKER = Path(__file__).with_name("layers_worker.py")
WAYS = ("ddp", "fsdp2", "zero2", "zero3")
SETTINGS: dict[str, dict[str, Any]] = {
    **{way: {"chain": [way], "losses": "all", "steps": 3} for way in WAYS},
    "moved": {"chain": ["ddp", "fsdp2", "zero2"], "losses": "all", "steps": 2},
    **{f"{way}-behind": {"chain": [way], "losses": "behind", "steps": 3} for way in WAYS},
    **{f"{way}-checkpointed": {"chain": [way], "losses": "all", "steps": 2, "checkpointed": True} for way in WAYS[:2]},
    **{f"{way}-sharded": {"chain": [way], "losses": "all", "steps": 2, "sharded": True} for way in WAYS[:2]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of one launch of three ranks, compared with one process with whole batches."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("layers")
    asked, found = folder / "settings.json", folder / "results.json"
    asked.write_text(json.dumps(SETTINGS))
    codes, told = ended(start_ranks([WORKER, asked, found], folder, 3, CUDA_VISIBLE_DEVICES=""), seconds=600)
    assert codes == [0] * 3, told[-6000:]
    return json.loads(found.read_text())


@pytest.mark.parametrize("name", SETTINGS)
def test_three_ranks_train_as_one(results: dict[str, Any], name: str) -> None:
    result = results[name]
    assert result["losses"] == pytest.approx(result["undisturbed"], rel=1e-5)
    assert result["error"] < 1e-5
    assert result["error_of_losses"] < 1e-5
    assert not any(weight.startswith("losses") for weight in result["published"])

"""Knowledge points on one, two and three ranks: the same bytes, for students that one rank has trained and for those
that all ranks have trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import dtrain, ended, start_ranks

pytestmark = pytest.mark.distributed
CNN = {"type": "textcnn", "embedding": 8, "filters": 4, "widths": [1, 2], "dropout": 0.0}
STUDENT = {"model": CNN, "epochs": 2, "batch_size": 8, "keep_epochs": True}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"train": "rows.jsonl", "valid": "rows.jsonl", "vocabulary": {"min_count": 1}},
    "students": [{"name": "alone", **STUDENT}, {"name": "whole", **STUDENT, "parallel": "data"}],
    "knowledge_points": {"keywords": "words", "rows": 20, "steps": 3, "samples": 128},
    "launch": {"processes": 2, "timeout": 60},
    "report": {"latency": False},
}


def run(folder: Path, ranks: int, stages: str) -> None:
    command = ["-m", "dtrain", "run", "recipe.yaml", "--stages", stages]
    codes, told = ended(start_ranks(command, folder, ranks), seconds=300)
    assert codes == [0] * ranks, told[-6000:]


def test_any_number_of_ranks_finds_the_same_points(tmp_path: Path) -> None:
    two = tmp_path / "two"
    two.mkdir()
    rows = [
        {"text": f"{'ab'[n % 2]} {'one two ' * (n % 4)}{n}", "label": "ab"[n % 2], "words": ["ab"[n % 2]]}
        for n in range(40)
    ]
    (two / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (two / "recipe.yaml").write_text(json.dumps(RECIPE))
    run(two, 2, "prepare,distill,points")
    root = two / "runs/tiny"
    found = (root / "points/points.json").read_bytes()
    # With 128 draws a batch has room for 16 tokens, so that each rank has several batches.
    assert len(json.loads(found)["students"]["whole"]["epochs"]) == 3
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        shutil.copytree(two, folder)
        shutil.rmtree(folder / "runs/tiny/points")
        run(folder, ranks, "points")
        assert (folder / "runs/tiny/points/points.json").read_bytes() == found, ranks

    cut = tmp_path / "cut"
    shutil.copytree(two, cut)
    for gone in ("students", "epochs"):
        shutil.rmtree(cut / "runs/tiny" / gone)
    dtrain("run", "recipe.yaml", "--stages", "distill", "launch.accelerate_config=fsdp2", folder=cut)
    for epoch in range(3):
        own, other = (load_file(f / f"runs/tiny/epochs/whole/000{epoch}.safetensors") for f in (two, cut))
        assert own.keys() == other.keys()
        for name, tensor in own.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-5)

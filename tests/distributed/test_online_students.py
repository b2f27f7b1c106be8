"""Students with an online teacher, run as a user runs them: two ranks give the same result as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.forty_rows import write
from tests.processes import ended, start_ranks

pytestmark = pytest.mark.distributed
BERT = {"type": "bert", "hidden": 8, "layers": 2, "heads": 2, "dropout": 0.0, "tokenizer": "t"}
LOSSES: list[dict[str, Any]] = [{"type": "hidden_mse"}, {"type": "attention_mse"}, {"type": "soft_targets"}]
COMMON = {"epochs": 2, "batch_size": 8, "accumulation": 2}
TEACHER = {"type": "nezha", "hidden": 16, "layers": 3, "heads": 2, "vocabulary_size": 200}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"train": "train.jsonl", "split": {"valid": 0.2}},
    "teachers": [{"name": "t", "model": TEACHER, "epochs": 1}],
    "students": [
        {"name": "one", "model": BERT, **COMMON, "losses": LOSSES},
        {"name": "two", "model": {**BERT, "layers": 1}, **COMMON, "losses": LOSSES[:1], "answers": "online"},
        {"name": "whole", "model": BERT, **COMMON, "losses": LOSSES, "parallel": "data"},
    ],
    "launch": {"processes": 2, "timeout": 60},
    "report": {"splits": ["valid"]},
}


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.parent.name: load_file(path) for path in sorted(folder.glob("students/*/model.safetensors"))}


def run(folder: Path, ranks: int, stages: str, *changes: str) -> None:
    command = ["-m", "dtrain", "run", "recipe.yaml", "--stages", stages, *changes]
    codes, told = ended(start_ranks(command, folder, ranks), seconds=300)
    assert codes == [0] * ranks, told[-6000:]


def test_two_ranks_are_as_one(tmp_path: Path) -> None:
    for name in ("two", "one", "sharded"):
        (tmp_path / name).mkdir()
    two = write(tmp_path / "two", RECIPE)
    run(two, 2, "prepare,finetune,precompute,distill")
    found = weights(two / "runs/tiny")
    assert list(found) == ["one", "two", "whole"]
    for name, ranks, limit in (("one", 1, 1e-5), ("sharded", 2, 1e-6)):
        folder = tmp_path / name
        shutil.copytree(two, folder, dirs_exist_ok=True)
        for gone in ("students", "checkpoints", "tensorboard"):
            shutil.rmtree(folder / "runs/tiny" / gone, ignore_errors=True)
        changes = []
        if name == "sharded":  # then all ranks train all of its students together
            recipe = {**RECIPE, "students": RECIPE["students"][2:]}
            (folder / "recipe.yaml").write_text(json.dumps(recipe))
            changes = ["knowledge.sharded=true"]
        run(folder, ranks, "precompute,distill", *changes)
        other = weights(folder / "runs/tiny")
        assert list(other) == (["whole"] if name == "sharded" else ["one", "two", "whole"])
        for student in other:
            for key, tensor in other[student].items():
                torch.testing.assert_close(tensor, found[student][key], rtol=limit, atol=limit)

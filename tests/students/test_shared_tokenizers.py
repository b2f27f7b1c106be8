"""Transformers that share a tokenizer: a student with its teacher, and peers with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtrain.data import PreparedData
from dtrain.errors import InputError
from dtrain.models import load
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, prepare

TINY = {"type": "bert", "size": "tiny", "hidden": 16, "heads": 2, "layers": 1}


def recipe(folder: Path, students: list[dict[str, Any]], **teacher: Any) -> Recipe:
    rows = [{"text": f"{'好坏'[n % 2]}的 word{n % 5}", "label": "ab"[n % 2]} for n in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "data": {"train": str(folder / "train.jsonl"), "max_length": 16, "vocabulary": {"min_count": 1}},
        "teachers": [{"name": "big", "model": {**TINY, "layers": 2, "vocabulary_size": 120} | teacher}],
        "students": [{"teachers": [], "epochs": 1, "batch_size": 8, **student} for student in students],
    }
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return load_recipe(str(folder / "recipe.yaml"))


def test_a_student_reads_its_teachers_tokens(tmp_path: Path, world: World) -> None:
    resolved = recipe(tmp_path, [{"name": "small", "model": {**TINY, "tokenizer": "big"}}])
    plan = Plan(resolved)
    prepare.run(resolved, world, plan.folder)
    assert sorted(path.name for path in (plan.folder.data / "tokenizers").iterdir()) == ["big"]
    data = PreparedData.open(plan.folder)
    of_teacher, of_student = (
        data.part("train", member.tokenizer) for member in (*resolved.teachers, *resolved.students)
    )
    assert np.array_equal(of_teacher.tokens, of_student.tokens)
    distill.run(resolved, world, plan.folder)
    folder = plan.folder.model("students", "small")
    assert load(folder).config.vocab_size == data.vocabulary("big")
    assert (folder / "tokenizer.json").read_bytes() == (data.tokenizer_path("big") / "tokenizer.json").read_bytes()


def test_transformers_are_peers_where_they_read_the_same(tmp_path: Path, world: World) -> None:
    students = [
        {"name": name, "model": {**TINY, "tokenizer": "big"}, "seed": n, "peers": "x"} for n, name in enumerate("ab")
    ]
    resolved = recipe(tmp_path, students)
    plan = Plan(resolved)
    prepare.run(resolved, world, plan.folder)
    distill.run(resolved, world, plan.folder)
    for name in "ab":
        history = read_json(plan.folder.model("students", name) / "history.json")
        assert all(entry["peers"] > 0 for entry in history if entry["split"] == "train")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"tokenizer": "bgi"}, r"students\.0\.model\.tokenizer: no transformer .* 'bgi'; did you mean 'big'\?"),
        ({"tokenizer": "small"}, r"students\.0\.model\.tokenizer: no transformer .* \(there are: big\)"),
        ({"tokenizer": "big", "vocabulary_size": 200}, r"tokenizer: 'big' brings the vocabulary"),
        ({"tokenizer": "big", "pretrained": "x"}, "pretrained and "),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(
            tmp_path, [{"name": "small", "model": (TINY if "pretrained" not in model else {"type": "bert"}) | model}]
        )


def test_peers_with_other_tokens_are_refused(tmp_path: Path) -> None:
    students = [{"name": name, "model": TINY, "peers": "x"} for name in "ab"]
    with pytest.raises(InputError, match="peers read the same tokens, and those of a are others; see model.tokenizer"):
        recipe(tmp_path, students)

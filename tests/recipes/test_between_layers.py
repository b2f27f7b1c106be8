"""Shipped recipes of losses between layers, run whole on a few rows with models of the same layers and next to no width."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from dtrain.recipe import load_recipe, shipped_recipes
from dtrain.runfolder import read_json
from tests.here import dtrain_here

SMALLER = (
    (r"pretrained: (bert-base-chinese|sijunhe/nezha-cn-base)", "layers: 12, hidden: 48, heads: 12, intermediate: 24"),
    (r"hidden: (384|312)", "hidden: 24"),
    (r"intermediate: 1200", "intermediate: 24"),
    (r"relation_heads: 48", "relation_heads: 6"),
    (r"epochs: \d+", "epochs: 1"),
    (r"seed: \[1, 2, 3\]", "seed: [1]"),
    (r"processes: auto", "processes: 1"),
)


def smaller(name: str, folder: Path) -> Path:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    for pattern, replaced in SMALLER:
        text = re.sub(pattern, replaced, text)
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def titles(folder: Path) -> None:
    draw = random.Random(0)
    topics = {"100": "球赛队员", "101": "股票银行"}

    def text(label: str) -> str:
        return "".join(draw.choices(topics[label] + "的了", k=draw.randint(1, 9)))

    (folder / "data/tnews").mkdir(parents=True)
    for part, count in (("train", 36), ("dev", 12)):
        rows = [{"sentence": text(label), "label": label} for label in draw.choices([*topics], k=count)]
        (folder / f"data/tnews/{part}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data/tnews/transfer.txt").write_text("".join(text(label) + "\n" for label in [*topics] * 6))


def sentences(folder: Path) -> None:
    draw = random.Random(0)
    (folder / "data/resume_ner").mkdir(parents=True)
    for part, count in (("train", 36), ("dev", 8), ("test", 8)):
        lines = []
        for _ in range(count):
            lines += [f"{one} O" for one in draw.choices("在的了和是", k=draw.randint(1, 6))]
            lines += ["王 B-NAME", f"{draw.choice('明华')} E-NAME", ""]
        (folder / f"data/resume_ner/{part}.char.bmes").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["minilm", "minilm_v2", "relations", "feature_methods_tagging"])
def test_it_runs_whole(name: str, tmp_path: Path) -> None:
    (sentences if "tagging" in name else titles)(tmp_path)
    recipe = load_recipe(str(smaller(name, tmp_path)))
    dtrain_here("run", f"{name}.yaml", "--here", "report.latency=false", folder=tmp_path)
    run = tmp_path / "runs" / name
    for student in recipe.students:
        assert (run / "students" / student.name / "model.safetensors").is_file()
    assert (run / "report").is_dir()
    taught = [student for student in recipe.students if student.teachers]
    for student in taught:
        losses = [loss for phase in student.phases or [student] for loss in phase.losses or []]
        history = read_json(run / "students" / student.name / "metrics.json")
        assert losses and history["steps"] >= 1


def test_the_relations_are_compared_with_the_same_student_without_them() -> None:
    students = {student.name: student for student in load_recipe("relations").students}
    plain = students.pop("soft-targets-seed1")
    for name, student in students.items():
        assert student.model == plain.model, name
        outputs = [loss.type for loss in (student.phases or [student])[-1].losses or []][:2]
        assert outputs == [loss.type for loss in plain.losses or []]
        assert sum(phase.epochs or 0 for phase in student.phases or [student]) == plain.epochs

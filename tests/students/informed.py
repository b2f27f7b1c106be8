"""A recipe with two tasks on synthetic sentences: one tagger predicts arguments, another reads them and predicts
triggers.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from dtrain.plan import Plan
from dtrain.recipe import load_recipe

COLUMNS = {"text": "text", "label": "triggers", "privileged": "arguments", "span_end": "exclusive"}
SMALL = {"epochs": 6, "batch_size": 8, "optimizer": {"lr": 0.1}}
TAGGER = {"type": "tagger", "embedding": 8, "lstm": 6, "dropout": 0.1}
INFORMED = {"name": "informed", "task": "events", "model": {**TAGGER, "privileged": {"size": 4}}, **SMALL}
ARGUMENTS = {"name": "arguments", "task": "arguments", "model": TAGGER, **SMALL}


def write_rows(root: Path) -> None:
    """Write sentences in which the position of the arguments decides which of two equal verbs is the trigger."""
    made = random.Random(5)
    for part, count in (("train", 40), ("valid", 12), ("test", 12)):
        with (root / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                who, verb, where = made.choice("甲乙丙"), made.choice("撞烧"), made.choice("东西")
                text = f"{verb}了{who}又{verb}{where}。" + "无" * made.randint(0, 4)
                first = made.random() < 0.5
                row = {
                    "id": f"{part}{number}",
                    "text": text,
                    "triggers": [[0, 1, "hit"]] if first else [[4, 5, "burn"]],
                    "arguments": [[2, 3, "who"]] if first else [[5, 6, "where"]],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def recipe_of(root: Path, name: str, *students: dict[str, Any], **sections: Any) -> dict[str, Any]:
    files = {part: f"{root}/{part}.jsonl" for part in ("train", "valid", "test")}
    rows = {"task": "tagging", **files, "max_length": 16, "vocabulary": {"min_count": 1}}
    return {
        "name": name,
        "output_dir": f"{root}/runs",
        "tasks": {
            "events": {**rows, "columns": COLUMNS},
            "arguments": {**rows, "columns": {"label": "arguments", "span_end": "exclusive"}},
        },
        "teachers": [{**INFORMED, "annotated_by": "arguments"}, ARGUMENTS],
        "students": [{"task": "events", "model": TAGGER, **SMALL, **student} for student in students],
        "report": {"latency": False},
        **sections,
    }


def plan_of(root: Path, name: str, *students: dict[str, Any], **sections: Any) -> Plan:
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe_of(root, name, *students, **sections)), encoding="utf-8")
    return Plan(load_recipe(str(path)))

"""A teacher and students with phases on synthetic rows; whole stages are run in this process."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare

WORDS = {"sport": "球赛队员进攻胜负", "money": "股票银行利率基金"}
CNN = {"type": "textcnn", "embedding": 8, "filters": 4, "widths": [2], "dropout": 0.2}
TEACHER = {"name": "t", "model": CNN, "epochs": 1, "batch_size": 12, "optimizer": {"lr": 0.05}}
HINT = {"name": "hint", "rows": ["transfer"], "losses": [{"type": "feature_hint"}], "epochs": 2, "batch_size": 6}
SOFT = {"name": "soft", "rows": ["train", "transfer"], "epochs": 2, "optimizer": {"lr": 0.02}, "freeze": ["embedding"]}
GOLD = {"name": "gold", "rows": ["train"], "losses": [{"type": "cross_entropy"}], "epochs": 3}
STUDENT = {"name": "s", "model": CNN, "batch_size": 8, "checkpoint_every": 1, "phases": [HINT, SOFT, GOLD]}


def write_rows(root: Path) -> None:
    made = random.Random(5)
    for part, count in (("train", 24), ("valid", 16), ("transfer", 20)):
        with (root / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for label in list(WORDS) * (count // 2):
                text = "".join(made.choices(WORDS[label] + "的了" * 4, k=made.randint(2, 6)))
                row = {"text": text} if part == "transfer" else {"text": text, "label": label}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def recipe_of(root: Path, name: str, *students: dict[str, Any], **sections: Any) -> dict[str, Any]:
    data = {part: f"{root}/{part}.jsonl" for part in ("train", "valid", "transfer")}
    return {
        "name": name,
        "output_dir": f"{root}/runs",
        "data": {**data, "vocabulary": {"min_count": 1}},
        "teachers": [TEACHER],
        "students": list(students),
        "report": {"latency": False},
        **sections,
    }


def plan_of(root: Path, name: str, *students: dict[str, Any], **sections: Any) -> Plan:
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe_of(root, name, *students, **sections)), encoding="utf-8")
    return Plan(load_recipe(str(path)))


def run(world: World, root: Path, name: str, *students: dict[str, Any], **sections: Any) -> Plan:
    """Run everything up to `distill`; folders of an earlier run are used again."""
    plan = plan_of(root, name, *students, **sections)
    for stage in (prepare, finetune, precompute, distill):
        stage.run(plan.recipe, world, plan.folder)
    return plan

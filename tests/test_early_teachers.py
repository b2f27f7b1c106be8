"""Teachers that differ only in `stop_epoch` come from one training: each has the weights that a training of its own
would have given.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from dtrain.models import load
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import finetune, prepare
from dtrain.training.model_job import ModelJob

WORDS = {"sport": "球赛队员进攻胜负", "money": "股票银行利率基金"}
CNN = "model: {type: textcnn, embedding: 8, filters: 4}, epochs: 3, optimizer: {lr: 0.05}, batch_size: 12"
RECIPE = """
data:
  train: ROOT/train.jsonl
  valid: ROOT/valid.jsonl
  vocabulary: {min_count: 1}
teachers:
  - {name: early, CNN, grid: {stop_epoch: [1, 2]}}
  - {name: other, CNN, seed: 9, stop_epoch: 1}
  - {name: full, CNN}
  - {name: last, CNN, stop_epoch: 3}
students: []
"""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the names of the teachers whose training was started."""
    names: list[str] = []
    train = finetune.train_model

    def counted(job: ModelJob, *rest: Any) -> dict[str, Any]:
        names.append(job.spec.name)
        return train(job, *rest)

    monkeypatch.setattr(finetune, "train_model", counted)
    return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = random.Random(5)
    for part, count in (("train", 48), ("valid", 24)):
        rows = []
        for label in list(WORDS) * (count // 2):
            text = "".join(made.choices(WORDS[label] + "的了" * 4, k=made.randint(2, 6)))
            rows.append(json.dumps({"text": text, "label": label}) + "\n")
        (tmp_path / f"{part}.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


def run(root: Path, world: World, name: str, *overrides: str) -> Plan:
    path = root / f"{name}.yaml"
    path.write_text(
        f"name: {name}\noutput_dir: {root}/runs" + RECIPE.replace("CNN", CNN).replace("ROOT", str(root)),
        encoding="utf-8",
    )
    recipe = load_recipe(str(path), list(overrides))
    plan = Plan(recipe)
    for stage in (prepare, finetune):
        stage.run(recipe, world, plan.folder)
    return plan


def test_each_is_what_it_is_by_itself(root: Path, world: World, trained: list[str]) -> None:
    together = run(root, world, "together")
    names = [teacher.name for teacher in together.recipe.teachers]
    assert len(names) == 5
    assert trained == ["full", "other"]  # the training of `full` also gave its variants with `stop_epoch`
    seen = []
    for number, name in enumerate(names):
        alone = run(root, world, f"alone{number}", f"teachers=[{json.dumps(_section(together, name))}]")
        assert trained[-1] == name
        one, other = (plan.folder.model("teachers", name) for plan in (together, alone))
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        assert read_json(one / "history.json") == read_json(other / "history.json")
        seen.append((one / "model.safetensors").read_bytes())
        metrics, expected = (_of_training(read_json(folder / "metrics.json")) for folder in (one, other))
        assert metrics == expected
        assert sum(p.numel() for p in load(one).parameters()) == metrics["parameters"]
        assert list(together.folder.tensorboard("teachers", name).iterdir())
    assert len(set(seen[:3])) == 3  # epochs and seeds differ
    assert all(together.stage_done(stage) for stage in ("prepare", "finetune"))


def test_one_that_is_missing_afterwards_is_trained_alone(root: Path, world: World, trained: list[str]) -> None:
    plan = run(root, world, "again")
    early = plan.folder.model("teachers", plan.recipe.teachers[1].name)
    weights = (early / "model.safetensors").read_bytes()
    shutil.rmtree(early)
    del trained[:]
    run(root, world, "again")
    assert trained == [early.name]
    assert (early / "model.safetensors").read_bytes() == weights


def _section(plan: Plan, name: str) -> dict[str, Any]:
    """The section of a teacher in the resolved recipe."""
    (teacher,) = (teacher for teacher in plan.recipe.teachers if teacher.name == name)
    section: dict[str, Any] = teacher.model_dump(mode="json", exclude={"grid", "sample"})
    return section


def _of_training(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if "second" not in key}

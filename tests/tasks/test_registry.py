"""A kind of task from outside the package: one folder or module, and a recipe trains, scores, predicts and reports it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.__main__ import main
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, evaluate, finetune, precompute, prepare, report
from dtrain.tasks import registry, rules

# Grades 0 to 4: classes with an order, so that a model is chosen by how near its answers are.
MODULE = '''
from dataclasses import replace

import numpy as np
import torch

from dtrain.tasks.classification.answers import Labels
from dtrain.tasks.classification.preparing import TextPreparing
from dtrain.tasks.classification.reading import TextReading
from dtrain.tasks.classification.scoring import count_part
from dtrain.tasks.classification.task import Classification
from dtrain.tasks.classification.view import VIEW
from dtrain.tasks.registry import TaskKind, register_task
from dtrain.tasks.rules import rules_of


class Grades(Classification):
    """Classes whose names are numbers."""

    def scores(self, model, part, workers):
        grades = torch.tensor([float(label) for label in self.labels], dtype=torch.float64)
        counts = count_part(model, part, workers, len(self.labels))[0].counts.double()
        apart = (grades[:, None] - grades).abs()
        found = super().scores(model, part, workers)
        return found | {"closeness": 1 - float((counts * apart).sum() / counts.sum() / apart.max())}

    def record(self, model, part, workers):
        found = super().record(model, part, workers)
        return found | {"scores": self.scores(model, part, workers)}

    def headline(self, scores):
        return f"closeness {scores['closeness']:.4f}"


KIND = TaskKind(
    rules=replace(rules_of("classification"), metrics=("closeness", "accuracy", "loss"), models=("textcnn", "fasttext")),
    reading=TextReading(),
    preparing=TextPreparing(),
    task=Grades,
    answers=Labels(),
    view=replace(VIEW, lead="closeness", title="closeness", columns=(("closeness", "closeness"),), spread=("closeness", "loss")),
)
register_task("grades", KIND)
'''
RECIPE = """
name: outside
output_dir: {root}/runs
data: {{task: grades, train: {root}/rows.jsonl, valid: {root}/rows.jsonl, test: {root}/rows.jsonl, vocabulary: {{min_count: 1}}}}
teachers: [{{name: big, model: {{type: textcnn, embedding: 8, filters: 8}}, epochs: 2}}]
students: [{{name: small, model: {{type: fasttext, embedding: 4, buckets: 16}}, epochs: 1}}]
launch: {{processes: 1}}
report: {{latency: false}}
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in a folder of its own, and the registries as they were afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "outside_grades", raising=False)
    (tmp_path / "outside_grades.py").write_text(MODULE)
    rows = [{"text": "good " * (n % 5) + f"text {n}", "label": str(n % 5)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=tmp_path))
    yield tmp_path
    sys.modules.pop("outside_grades", None)
    tables = (registry.READINGS, registry.TASKS, registry.PREPARING, registry.ANSWERS, registry.VIEWS)
    for table in (rules._RULES, *tables):
        table.pop("grades", None)  # type: ignore[attr-defined]


def test_a_recipe_trains_scores_and_reports_it(outside: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="grades"):
        load_recipe(str(outside / "r.yaml"))
    __import__("outside_grades")
    recipe = load_recipe(str(outside / "r.yaml"))
    assert recipe.students[0].metric == "closeness"
    plan = Plan(recipe)
    for stage in (prepare, finetune, precompute, distill, evaluate, report):
        stage.run(recipe, world, plan.folder)
    metrics = read_json(plan.folder.model("students", "small") / "metrics.json")
    assert 0 <= metrics["closeness"] <= 1
    assert "closeness" in (plan.folder.root / "report" / "report.md").read_text()
    capsys.readouterr()
    assert main(["predict", str(outside / "r.yaml"), "--model", "small", "--input", str(outside / "rows.jsonl")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 60 and {answer["label"] for answer in answers} <= set("01234")


def test_names_and_metrics_are_checked(outside: Path) -> None:
    __import__("outside_grades")
    with pytest.raises(
        InputError, match=r"students\.0\.metric: 'closenes' is not for task .*did you mean 'closeness'\?"
    ):
        load_recipe(str(outside / "r.yaml"), ["students.0.metric=closenes"])
    with pytest.raises(ValueError, match="'grades' is registered twice"):
        registry.register_task("grades", sys.modules["outside_grades"].KIND)

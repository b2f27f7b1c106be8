"""A kind of task from outside the package: one folder or module, and a recipe trains, scores, predicts and reports it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.__main__ import main
from dtrain.errors import InputError
from dtrain.losses import registry as losses
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


# Classes with an order again, learnt otherwise: the mean grade is to come near the row's own.
OWN_NEEDS = """
from dataclasses import replace

import torch
from outside_grades import KIND, Grades

from dtrain.losses.registry import register
from dtrain.recipe.training import LossSpec
from dtrain.tasks.registry import register_task


class Expected(Grades):
    name = "expected"

    def teacher_losses(self, spec):
        return [LossSpec(type="mean_grade")]

    def collate(self, rows, index, needs):
        batch = super().collate(rows, index, needs)
        assert "grade" in needs
        return replace(batch, targets={"grade": batch.targets["labels"].double()})


needs = {"grade": "float64 [B]: the row's grade"}
rules = replace(
    KIND.rules, name="expected", losses=("mean_grade", "logit_regression"), weightings=("average",),
    needs=needs, gold=frozenset(needs), outputs=("logits", "features"), logits="grades",
)
register_task("expected", replace(KIND, rules=rules, task=Expected))


@register("logits", "grade")
def mean_grade(student_logits, grade, *, power: float = 2.0):
    places = torch.arange(student_logits.shape[-1], dtype=torch.float64)
    return ((student_logits.double().softmax(-1) * places).sum(-1) - grade).abs() ** power
"""


@pytest.fixture
def own_needs(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(losses, "_LOSSES", dict(losses._LOSSES))
    monkeypatch.delitem(sys.modules, "outside_expected", raising=False)
    (outside / "outside_expected.py").write_text(OWN_NEEDS)
    recipe = (outside / "r.yaml").read_text().replace("task: grades", "task: expected")
    (outside / "r.yaml").write_text(recipe.replace("name: outside", "name: needs"))
    __import__("outside_expected")
    yield outside
    sys.modules.pop("outside_expected", None)
    tables = (registry.READINGS, registry.TASKS, registry.PREPARING, registry.ANSWERS, registry.VIEWS)
    for table in (rules._RULES, *tables):
        table.pop("expected", None)  # type: ignore[attr-defined]


def test_a_kind_with_needs_of_its_own_shares_what_fits(own_needs: Path) -> None:
    """Its own loss is for it alone; losses of other tasks are for it where it has their needs, and its logits fit."""
    mine = set(losses.loss_names("expected"))
    assert mine >= {"mean_grade", "logit_regression", "feature_hint", "feature_cosine"}
    assert not mine & {"cross_entropy", "soft_targets", "cosine", "squared_error", "tag_likelihood"}
    assert losses.find_loss("mean_grade").tasks == ["expected"] and losses.find_loss("mean_grade").hard
    assert losses.find_loss("logit_regression").tasks == ["classification", "regression", "multi_label", "expected"]
    assert losses.find_loss("soft_targets").tasks == ["classification"]
    path = str(own_needs / "r.yaml")
    with pytest.raises(
        InputError, match=r"knowledge\.outputs: 'marginals' is not for task 'expected' \(allowed: logits, "
    ):
        load_recipe(path, ["knowledge.outputs=[logits, marginals]"])
    with pytest.raises(InputError, match=r"losses\.0 \(cross_entropy\): is not for task 'expected' \(allowed: "):
        load_recipe(path, ["students.0.losses=[{type: cross_entropy}]"])


def test_a_kind_with_needs_of_its_own_is_learnt(own_needs: Path, world: World) -> None:
    recipe = load_recipe(
        str(own_needs / "r.yaml"),
        [
            "teachers.0={name: big, model: {type: fasttext, embedding: 8, buckets: 16, dropout: 0}, epochs: 9, batch_size: 8, optimizer: {lr: 0.05}}"
        ],
    )
    assert [loss.type for loss in recipe.students[0].losses or []] == ["mean_grade", "logit_regression"]
    assert recipe.knowledge.outputs == ["logits"]
    plan = Plan(recipe)
    for stage in (prepare, finetune, precompute, distill):
        stage.run(recipe, world, plan.folder)
    history = read_json(plan.folder.model("teachers", "big") / "history.json")
    seen = [each["mean_grade"] for each in history if each["split"] == "train"]
    assert seen[-1] < 0.5 * seen[0]

"""Weights of classes: by hand, as scikit-learn balances them, in the sum over rows, and in every way to say them wrongly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from dtrain.__main__ import main
from dtrain.data import PreparedData
from dtrain.errors import InputError
from dtrain.losses.class_weights import weights_in_order
from dtrain.losses.exits import exits_cross_entropy
from dtrain.losses.objective import build_losses
from dtrain.losses.outputs import cross_entropy
from dtrain.plan import Plan
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.recipe.losses import LossSpec
from dtrain.runtime.distributed import World
from dtrain.stages import prepare
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training.members import Members
from tests.test_bad_input import check_refused, write_rows

COUNTS = {"a": 6, "b": 3, "c": 0, "d": 1}


def f64(values: list[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    # softmax([0, ln 3]) = [1/4, 3/4]: -ln 1/4 of label 0 counts 5 times, -ln 3/4 of label 1 half.
    logits, labels = f64([[0.0, math.log(3)]] * 2), torch.tensor([0, 1])
    weights: Any = (5.0, 0.5)
    values = cross_entropy(logits, labels, class_weights=weights)
    assert values.tolist() == pytest.approx([5 * math.log(4), 0.5 * math.log(4 / 3)], rel=1e-14)
    # With smoothing the whole value of a row is weighed: q = [0.9, 0.1] of label 0.
    smoothed = cross_entropy(logits[:1], labels[:1], label_smoothing=0.2, class_weights=weights)
    assert smoothed.item() == pytest.approx(5 * (0.9 * math.log(4) + 0.1 * math.log(4 / 3)), rel=1e-14)
    exits = torch.stack([logits, 0 * logits])  # the second exit says 1/2
    values = exits_cross_entropy(exits, labels, class_weights=weights)
    expected = [5 * (math.log(4) + math.log(2)) / 2, 0.5 * (math.log(4 / 3) + math.log(2)) / 2]
    assert values.tolist() == pytest.approx(expected, rel=1e-14)


def test_gradients() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1])
    weights: Any = (0.5, 2.0, 1.0, 3.0)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels, class_weights=weights), logits)
    exits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: exits_cross_entropy(z, labels, class_weights=weights), exits)


def test_balanced_is_what_scikit_learn_says() -> None:
    found = weights_in_order("balanced", COUNTS)
    gold = np.repeat(list(COUNTS), list(COUNTS.values()))
    seen = [label for label in COUNTS if COUNTS[label]]
    expected = dict(zip(seen, compute_class_weight("balanced", classes=np.array(seen), y=gold), strict=True))
    assert found == tuple(float(expected.get(label, 1.0)) for label in COUNTS)
    assert math.fsum(w * n for w, n in zip(found, COUNTS.values(), strict=True)) == pytest.approx(10)  # 1 on average
    assert weights_in_order({"d": 4.0}, COUNTS) == (1.0, 1.0, 1.0, 4.0)
    with pytest.raises(InputError, match=r"no label is called 'e' \(allowed: a, b, c, d\)"):
        weights_in_order({"e": 4.0}, COUNTS)


def test_the_sum_is_divided_by_rows_however_a_batch_is_cut() -> None:
    """A row without a label lacks the term and changes nothing; sums of parts are the sum of all."""
    losses = build_losses([LossSpec(type="cross_entropy", class_weights={"b": 3})], label_counts={"a": 5, "b": 2})  # type: ignore[call-arg]
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    labelled = torch.tensor([True, True, False, True, True, True])

    def total(rows: slice) -> torch.Tensor:
        return losses({"logits": logits[rows], "labels": labels[rows]}, {}, labelled[rows])[0]

    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (plain * torch.tensor([1, 3, 0, 1, 3, 1])).sum()
    torch.testing.assert_close(total(slice(0, 6)), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(total(slice(0, 2)) + total(slice(2, 6)), expected, rtol=1e-14, atol=0)


def test_without_weights_nothing_changes() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    assert torch.equal(
        cross_entropy(logits, labels), torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    )
    assert build_losses([LossSpec(type="cross_entropy")]).terms[0].parameters["class_weights"] is None


RECIPE = """\
name: weighed
output_dir: {folder}/runs
data: {{task: pairs, train: {folder}/train.jsonl, columns: {{text: a, text_b: b}}, split: {{valid: 0.2}}, vocabulary: {{min_count: 1}}}}
teachers: [{{name: cnn, model: {{type: textcnn, embedding: 8, filters: 4}}, class_weights: balanced}}]
students:
  - name: lstm
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    losses: [{{type: soft_targets}}, {{type: cross_entropy, class_weights: {{1: 4, yes: 0.5}}}}]
launch: {{processes: 1}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    labels = ["1"] * 20 + ["yes"] * 8 + ["2"] * 4
    write_rows(tmp_path / "train.jsonl", [{"a": f"a{n}", "b": f"b{n}", "label": x} for n, x in enumerate(labels)])
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path).replace("yes:", "'yes':"))
    return tmp_path / "recipe.yaml"


def test_a_recipe_weighs_teachers_and_students(recipe: Path, world: World) -> None:
    loaded = load_recipe(str(recipe))
    (recipe.parent / "again.yaml").write_text(dump_recipe(loaded))
    assert load_recipe(str(recipe.parent / "again.yaml")) == loaded
    plan = Plan(loaded)
    prepare.run(loaded, world, plan.folder)
    data = PreparedData.open(plan.folder)
    assert data.labels == ["1", "2", "yes"]
    members = Members(PreparedTasks.open(loaded, plan.folder), world, plan.folder)
    counts = data.info["label_counts"]["train"]
    assert sum(counts.values()) == 26
    model = torch.nn.Module()
    teacher = members._prepare("teachers", loaded.teachers[0], {}, {}, None, None).losses(model)
    assert teacher.terms[0].parameters["class_weights"] == tuple(26 / (3 * counts[label]) for label in data.labels)
    student = members._prepare("students", loaded.students[0], {}, {}, None, None).losses(model)
    assert student.terms[1].parameters["class_weights"] == (4.0, 1.0, 0.5)


WRONG = [
    ("teachers.0.class_weights={a: 0}", "teachers.0.class_weights", "must be a number over 0 for 'a'"),
    ("teachers.0.class_weights={a: -1}", "teachers.0.class_weights", "must be a number over 0 for 'a'"),
    ("teachers.0.class_weights={a: .nan}", "teachers.0.class_weights", "must be a number over 0 for 'a'"),
    ("teachers.0.class_weights={a: true}", "teachers.0.class_weights", "must be a number or a text, found true"),
    (
        "teachers.0.class_weights=even",
        "teachers.0.class_weights",
        "must be `balanced`, or a mapping from labels to numbers",
    ),
    ("teachers.0.class_weights=[1, 2]", "teachers.0.class_weights", "must be `balanced`, or a mapping from labels"),
    (
        "teachers.0.class_weights={1: 2, ye: 2}",
        "teachers.cnn.class_weights",
        "no label is called 'ye'; did you mean 'yes'?",
    ),
    (
        "students.0.losses=[{type: cross_entropy, class_weights: {yes: 0}}]",
        "students.0.losses.0",
        "class_weights: put labels that YAML reads as true or false in quotes, as 'yes'",
    ),
    (
        "students.0.losses=[{type: cross_entropy, class_weights: {3: 1}}]",
        "students.lstm.losses.0.class_weights",
        "no label is called '3' (allowed: 1, 2, yes)",
    ),
]


@pytest.mark.parametrize(("override", "place", "told"), WRONG, ids=[w[0] for w in WRONG])
def test_what_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], override: str, place: str, told: str
) -> None:
    code = main(["run", str(recipe), override])
    check_refused(capsys.readouterr().err, code, recipe.parent, place, told)


def test_an_unknown_label_is_seen_also_where_rows_are_prepared(
    recipe: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_recipe(str(recipe))
    prepare.run(loaded, world, Plan(loaded).folder)
    assert main(["check", str(recipe), "teachers.0.class_weights={nobody: 2}"]) == 2
    assert "teachers.cnn.class_weights: no label is called 'nobody'" in capsys.readouterr().err


def test_a_student_of_several_tasks_names_the_task(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe.parent
    write_rows(folder / "numbers.jsonl", [{"text": f"text {n}", "label": n / 3} for n in range(30)])
    encoder = "{type: bert, size: tiny, layers: 1, vocabulary_size: 100}"
    (folder / "two.yaml").write_text(
        f"name: two\noutput_dir: {folder}/runs\ntasks:\n  num: {{task: regression, train: {folder}/numbers.jsonl}}\n"
        f"  cls: {{task: pairs, train: {folder}/train.jsonl, columns: {{text: a, text_b: b}}}}\nstudents:\n"
        f"  - {{name: both, tasks: [num, cls], teachers: [], model: {{type: multi_task, encoder: {encoder}}},\n"
        "     losses: {cls: [{type: cross_entropy, class_weights: {3: 2}}]}}\n"
    )
    code = main(["check", str(folder / "two.yaml")])
    told = "students.both.losses.cls.0.class_weights: no label is called '3' (allowed: 1, 2, yes)"
    check_refused(capsys.readouterr().err, code, folder, told)


def test_tasks_without_classes_have_no_weights_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"text {n}", "label": n / 3} for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"name: n\noutput_dir: {tmp_path}/runs\ndata: {{task: regression, train: {tmp_path}/train.jsonl}}\n"
        "teachers: [{name: cnn, model: {type: textcnn}, class_weights: balanced}]\n"
    )
    code = main(["check", str(tmp_path / "recipe.yaml")])
    told = "class_weights: is not for task 'regression'"
    check_refused(capsys.readouterr().err, code, tmp_path, told)

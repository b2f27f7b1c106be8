"""Bad input of tasks `regression` and `multi_label`: exit code 2, one line a problem with file and line or key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.__main__ import main
from dtrain.recipe import load_recipe
from dtrain.tasks.corpus import read_corpus
from tests.test_bad_input import check_refused, write_rows

NUMBERS = [{"text": f"text number {n}", "label": n / 4} for n in range(12)]
SETS = [{"text": f"text number {n}", "label": ["ab"[n % 2]] * (n % 3 > 0) + ["c"] * (n % 4 == 0)} for n in range(12)]
RECIPE = """\
name: bad
output_dir: {folder}/runs
data: {{task: {task}, train: {folder}/train.jsonl, valid: {folder}/valid.jsonl}}
teachers: [{{name: cnn, model: {{type: textcnn, embedding: 8, filters: 4}}}}]
students: [{{name: lstm, model: {{type: bilstm, embedding: 8, hidden: 8}}}}]
launch: {{processes: 1}}
"""


def written(folder: Path, task: str) -> Path:
    rows = {"regression": NUMBERS, "multi_label": SETS}[task]
    write_rows(folder / "train.jsonl", [*rows])
    write_rows(folder / "valid.jsonl", [*rows[:5]])
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, task=task), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "metric", "told"),
    [
        ("regression", "pearson", "numbers from 0 to 2.75, mean 1.375, standard deviation 0.863"),
        ("multi_label", "f1", "3 labels: a 4, b 4, c 3"),
    ],
)
def test_the_recipes_themselves_are_good(
    task: str, metric: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, task)
    assert main(["check", str(recipe)]) == 0
    assert told in capsys.readouterr().out
    assert main(["check", str(recipe), "--resolved"]) == 0
    resolved = capsys.readouterr().out
    assert f"metric: {metric}" in resolved
    (tmp_path / "again.yaml").write_text(resolved, encoding="utf-8")
    assert main(["check", str(tmp_path / "again.yaml")]) == 0


KEYS = [
    ("regression", "data.labels=[a, b]", "labels: is not for task 'regression'"),
    ("regression", "data.separator=;", "separator: is only for task 'multi_label'"),
    ("regression", "teachers.0.metric=accuracy", "metric: 'accuracy' is not for task 'regression' (allowed: pearson, "),
    ("regression", "teachers.0.label_smoothing=0.1", "label_smoothing: is not for task 'regression'"),
    ("regression", "teachers.0.model={type: siamese}", "'siamese' reads two texts a row, and data.columns.text_b names no"),
    ("regression", "teachers.0.model={type: multi_exit, encoder: {type: bert}, exits: [1]}", "not for task 'regression'"),
    ("regression", "students.0.losses=[{type: soft_targets}]", "soft_targets): is not for task 'regression' (allowed: "),
    ("regression", "students.0.losses=[{type: logit_regression, weighting: confidence}]", "(allowed: average, fixed)"),
    ("regression", "students.0.noisy={}", "a task whose rows have one label each"),
    ("regression", "knowledge.top_k=1", "top_k: is for logits, not for task 'regression'"),
    ("multi_label", "data.standardize=true", "standardize: is only for task 'regression'"),
    ("multi_label", "data.threshold=1", "data.threshold: input should be less than 1"),
    ("multi_label", "data.labels=[]", "0 label(s) given; multi_label needs at least 1"),
    ("multi_label", "data.labels=[a, b]", "train.jsonl:1: label 'c' is not in data.labels (allowed: a, b)"),
    ("multi_label", "teachers.0.metric=pearson", "metric: 'pearson' is not for task 'multi_label'"),
    ("multi_label", "teachers.0.tolerance={}", "tolerance: is not for task 'multi_label'"),
    ("multi_label", "students.0.losses=[{type: squared_error}]", "squared_error): is not for task 'multi_label' (allowed: "),
    ("multi_label", "data.task=classification", "train.jsonl:1: 'label' must be a text or a whole number, found a list"),
    ("multi_label", "data.task=regression", "train.jsonl:1: 'label' must be a number, found a list"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "override", "told"), KEYS, ids=[f"{key[0]}-{key[1]}" for key in KEYS])
def test_keys(task: str, override: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", str(written(tmp_path, task)), override])
    check_refused(capsys.readouterr().err, code, tmp_path, told)


WRONG: list[tuple[str, Any, str]] = [
    ("regression", "high", "'label' must be a number, found 'high' (1 more like it)"),
    ("regression", "nan", "'label' must be a number, found 'nan'"),
    ("regression", float("nan"), "'label' must be a number, found nan"),
    ("regression", float("inf"), "'label' must be a number of at most 1e18, found inf"),
    ("regression", "1,5", "'label' must be a number, found '1,5'"),
    ("regression", "1_000", "'label' must be a number, found '1_000'"),
    ("regression", True, "'label' must be a number, found true/false"),
    ("regression", [1.5], "'label' must be a number, found a list"),
    ("regression", 1e30, "'label' must be a number of at most 1e18, found 1e+30"),
    ("multi_label", ["a", "b", "a"], "'label' has a label twice: 'a'"),
    ("multi_label", "a, c,a", "'label' has a label twice: 'a'"),
    ("multi_label", ["a", ""], "'label' has an empty label"),
    ("multi_label", "a,,b", "'label' has an empty label in 'a,,b'"),
    ("multi_label", ["a", 1.5], "'label' must be a list of texts or whole numbers, found the number 1.5 in it"),
    ("multi_label", {"a": 1}, "'label' must be a list of labels, or a text, found an object"),
    (
        "multi_label",
        None,
        "'label' is empty: a row for training or validation needs labels ([] or an empty text is none",
    ),
]


@pytest.mark.parametrize(("task", "value", "told"), WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_rows(task: str, value: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, task)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows[2]["label"] = rows[6]["label"] = value
    write_rows(tmp_path / "train.jsonl", rows)
    code = main(["check", str(recipe)])
    error = capsys.readouterr().err
    check_refused(error, code, tmp_path, f"train.jsonl:3: {told}")
    assert len(error.splitlines()) == 1


def test_a_label_outside_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, "multi_label")
    write_rows(tmp_path / "valid.jsonl", [{"text": "x", "label": ["a"]}, {"text": "y", "label": ["b", "cc"]}])
    code = main(["check", str(recipe)])
    told = "valid.jsonl:2: label 'cc' does not occur in training; did you mean 'c'? (allowed: a, b, c)"
    check_refused(capsys.readouterr().err, code, tmp_path, told)


def test_numbers_that_cannot_be_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, "regression")
    for value, told in ((3, "every number is 3"), (None, "no row has a number")):
        write_rows(tmp_path / "train.jsonl", [{**row, "label": value} for row in NUMBERS])
        code = main(["check", str(recipe)])
        check_refused(capsys.readouterr().err, code, tmp_path, f"data.train: {told} (column 'label'); regression needs")


def test_rows_to_be_scored_have_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, "regression")
    write_rows(tmp_path / "test.jsonl", [NUMBERS[0], {**NUMBERS[1], "label": ""}])
    code = main(["check", str(recipe), f"data.test={tmp_path}/test.jsonl"])
    told = "test.jsonl:2: has no number, but other test rows have one; label all of them, or none"
    check_refused(capsys.readouterr().err, code, tmp_path, told)
    write_rows(tmp_path / "valid.jsonl", [NUMBERS[0], {**NUMBERS[1], "label": None}])
    code = main(["check", str(recipe)])
    told = "valid.jsonl:2: 'label' is empty: a row for training or validation needs a number"
    check_refused(capsys.readouterr().err, code, tmp_path, told)


def test_rows_without_a_number_are_not_set_aside_for_scoring(tmp_path: Path) -> None:
    recipe = written(tmp_path, "regression")
    write_rows(tmp_path / "train.jsonl", [{"text": f"bare {n}", "label": None} for n in range(100)] + NUMBERS)
    data = load_recipe(str(recipe), ["data.valid=[]", "data.split={valid: 0.1, test: 0.2}"]).data
    corpus = read_corpus(data, seed=0)
    assert {part: numbers.tolist() for part, numbers in corpus.numbers.items() if part != "train"} == {
        "valid": [0],
        "test": [0, 0],
    }
    assert (corpus.numbers["train"] < 0).sum() == 100 and len(corpus.parts["train"]) == 109
    assert list(corpus.parts["train"].line) == sorted(corpus.parts["train"].line)


def test_signs_of_a_slip_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, "regression")
    write_rows(tmp_path / "train.jsonl", [*NUMBERS, {"text": "no number", "label": None}])
    assert main(["check", str(recipe)]) == 0
    assert "data.train: 1 of 13 rows have no number: only teachers' outputs" in capsys.readouterr().err
    write_rows(tmp_path / "valid.jsonl", [{"text": f"new {n}", "label": 2} for n in range(3)])
    assert main(["check", str(recipe)]) == 0
    assert "data.valid: every number is 2, with which nothing correlates: pearson and" in capsys.readouterr().err
    recipe = written(tmp_path, "multi_label")
    write_rows(tmp_path / "train.jsonl", [{"text": "x y", "label": name} for name in ("a;b", "b", "a", "c") * 3])
    assert main(["check", str(recipe), "data.valid=[]"]) == 0
    assert "no row has more than one label; is task classification meant, or another" in capsys.readouterr().err

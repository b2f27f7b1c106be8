"""Warnings about models that have learnt nothing: given if they are true, and not otherwise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dtrain.metrics import Confusion, scores
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import finetune, prepare
from dtrain.training.remarks import remarks

LABELS = ["sport", "money", "film"]


def of(gold: list[int], predicted: list[int]) -> list[str]:
    found = scores(Confusion.of(torch.tensor(gold), torch.tensor(predicted), len(LABELS)))
    return remarks([found], found, np.array([*gold, -1]), LABELS)


def test_one_class_for_every_row() -> None:
    assert of([0, 0, 1, 1, 1, 2], [1] * 6) == [
        "it gives every validation row the class 'money' (50.0 % of them): nothing about a row can be learnt from it"
    ]
    assert "'film' (60.0 %" in of([2, 2, 2, 0, 0], [2] * 5)[0]  # one of the classes does not occur


def test_no_row_right_in_any_evaluation() -> None:
    assert of([0, 0, 1], [2, 2, 2]) == [
        "f1 was 0.0 in the evaluation: it has not learnt the task, and nothing can be learnt from it"
    ]
    nothing, something = {"f1": 0.0, "accuracy": 0.9}, {"f1": 0.1, "accuracy": 0.9}  # scores of a tagger
    gold = np.zeros(4, dtype=np.int64)
    assert remarks([nothing] * 8, nothing, gold, [])[0].startswith("f1 was 0.0 in all 8 evaluations")
    assert remarks([nothing, something], something, gold, []) == []


def test_silent_about_every_other_answer() -> None:
    """All possible answers to five rows: a warning if they contain only one class or if no row is right."""
    gold = [0, 0, 1, 1, 2]
    for predicted in itertools.product(range(3), repeat=len(gold)):
        wrong = all(a != b for a, b in zip(gold, predicted, strict=True))
        assert bool(of(gold, list(predicted))) == (wrong or len(set(predicted)) == 1), predicted
    assert of([1, 1], [1, 1]) == []  # there is one class only


def test_told_and_written_beside_the_scores(tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher that learns only the frequencies of its classes, and the same teacher taken from its folder."""
    for part, shift in (("train", 0), ("valid", 5)):
        rows = [{"text": f"{part[0]}{n}", "label": "y" if n % 12 == shift else "x"} for n in range(24)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    head = f"output_dir: {tmp_path}\ndata: {{train: {tmp_path}/train.jsonl, valid: {tmp_path}/valid.jsonl}}\n"
    model = "model: {type: textcnn, embedding: 4, filters: 2}, epochs: 9, optimizer: {lr: 0.01}"
    for name, teacher in (("first", model), ("second", f"from: {tmp_path}/first/teachers/t")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"name: {name}\n{head}teachers: [{{name: t, {teacher}}}]\n", encoding="utf-8")
        recipe = load_recipe(str(path))
        for stage in (prepare, finetune):
            stage.run(recipe, world, Plan(recipe).folder)
        told = [line for line in capsys.readouterr().out.splitlines() if "REMARK" in line]
        assert len(told) == 1 and told[0].startswith("teacher t: REMARK: it gives every validation row the class '")
        metrics = read_json(tmp_path / name / "teachers" / "t" / "metrics.json")
        assert metrics["remarks"] == [told[0].split("REMARK: ")[1]]

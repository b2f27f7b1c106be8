"""The published methods through all stages of a recipe on synthetic rows, and the files that each writes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.data import EncodedSplit, PreparedData, tokenizer_name
from dtrain.data.encode import MASK
from dtrain.knowledge.reader import StoreReader
from dtrain.models import load
from dtrain.plan import Plan
from dtrain.recipe import Recipe, load_recipe
from dtrain.report import speed
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, evaluate, finetune, precompute, prepare, report
from dtrain.stages.check import check_inputs
from dtrain.training.workers import Workers

WORDS = {"sport": "球赛队员进攻胜负", "money": "股票银行利率基金"}
ENCODER = "{type: bert, hidden: 8, heads: 2, layers: 3, intermediate: 16, vocabulary_size: 120}"
CLASSES = f"""
teachers:
  - name: good
    model: {{type: bert_cnn, encoder: {ENCODER}, filters: 4, widths: [1, 2]}}
    tolerance: {{weight: 0.1, k: 2}}
    epochs: 1
  - {{name: early, model: {{type: textcnn, embedding: 8, filters: 8, widths: [2]}}, epochs: 3, stop_epoch: 2, batch_size: 12}}
students:
  - name: hinted
    model: {{type: textcnn, embedding: 8, filters: 2, widths: [1, 2, 3, 4]}}
    losses:
      - {{type: feature_hint, weighting: confidence}}
      - {{type: teacher_annealing, until: 0.5}}
      - {{type: logit_regression, weighting: {{type: gradient, limit: 0.9}}, weight: {{start: 1, shape: step, until: 0.5}}}}
    epochs: 2
  - {{name: exits, model: {{type: multi_exit, encoder: {ENCODER}, exits: [1, 2], confidence: 0.6}}, epochs: 1, optimizer: {{lr: 0.01}}}}
  - {{name: noisy, model: {ENCODER}, noisy: {{confidence: 0.1, token_noise: 0.3}}, epochs: 1}}
"""
PAIRS = """
teachers:
  - {name: siamese, model: {type: siamese, embedding: 8, hidden: 4}, epochs: 1}
students:
  - {name: cnn, model: {type: textcnn, embedding: 8, filters: 4}, losses: [{type: reverse_soft_targets}], epochs: 1}
  - {name: small, model: {type: siamese, embedding: 4, hidden: 2}, noisy: {confidence: 0.1}, epochs: 1}
"""


def run(folder: Path, members: str, world: World, *, pairs: bool) -> Recipe:
    """Run every stage in turn; for pairs without the report, whose plots take seconds."""
    made = random.Random(5)
    for part, count in (("train", 48), ("valid", 24)):
        lines = []
        for label in list(WORDS) * (count // 2):
            text, text_b = ("".join(made.choices(WORDS[label] + "的了", k=made.randint(2, 12))) for _ in range(2))
            lines.append(json.dumps({"text": text, "label": label} | ({"other": text_b} if pairs else {})))
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kind = "task: pairs\n  columns: {text_b: other}" if pairs else "task: classification"
    (folder / "r.yaml").write_text(
        f"name: run\noutput_dir: {folder}\ndata:\n  train: {folder}/train.jsonl\n  valid: {folder}/valid.jsonl\n"
        f"  max_length: 24\n  {kind}\n  augment: {{n_iter: 2, p_mask: 0.3}}\n"
        f"report: {{latency: false, splits: [valid]}}\n{members}",
        encoding="utf-8",
    )
    recipe = load_recipe(str(folder / "r.yaml"))
    check_inputs(recipe)
    for stage in (prepare, finetune, precompute, distill, evaluate, *([] if pairs else [report])):
        stage.run(recipe, world, Plan(recipe).folder)
    return recipe


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory, world: World) -> Plan:
    return Plan(run(tmp_path_factory.mktemp("classes"), CLASSES, world, pairs=False))


def test_classes_end_with_a_report_of_every_model(classes: Plan) -> None:
    results = read_json(classes.folder.report / "results.json")
    assert {model["name"] for model in results["models"]} == {"good", "early", "hinted", "exits", "noisy"}
    assert results["failed"] == []
    for model in results["models"]:
        assert np.isfinite(model["loss"])


def test_a_teacher_that_stops_early_is_that_of_its_epoch(classes: Plan) -> None:
    metrics = read_json(classes.folder.model("teachers", "early") / "metrics.json")
    # Of the 12 steps of the schedule.
    assert (metrics["steps"], metrics["best_step"], metrics["best_epoch"]) == (8, 8, 2.0)


def test_made_up_rows_go_to_students_and_store(classes: Plan) -> None:
    data = PreparedData.open(classes.folder)
    transfer = data.part("transfer", "students")
    assert data.info["made_up"] == len(transfer) > 48
    assert any(MASK in text for text in transfer.rows()["text"])
    assert torch.isfinite(StoreReader.open(classes.folder.knowledge("good")).read("features", transfer.ids)).all()
    rows = {name: read_json(classes.folder.model("students", name) / "metrics.json") for name in ("hinted", "noisy")}
    assert rows["hinted"]["training_rows"] == 48 + len(transfer)


def leave_by_hand(model: torch.nn.Module, part: EncodedSplit, confidence: float) -> list[int]:
    """Number of rows that leave at each exit, computed a row at a time: the first exit that is confident enough."""
    model.confidence = None
    rows = [0, 0, 0]
    for index in range(len(part)):
        with torch.no_grad():
            sure = model(**part.collate(np.array([index]))).exits.softmax(-1).amax(-1)[:, 0] >= confidence
        rows[[*sure.tolist()[:2], True].index(True)] += 1
    return rows


def test_where_rows_leave_is_told(classes: Plan, world: World) -> None:
    place = classes.folder.model("students", "exits")
    record = read_json(place / "evaluation.json")["parts"]["valid"]
    model = load(place)
    part = PreparedData.open(classes.folder).part("valid", "exits")
    rows = leave_by_hand(model, part, 0.6)
    passed = (rows[0] + 2 * rows[1] + 3 * rows[2]) / len(part)
    assert record["exits"] == {"layers": [1, 2, 3], "rows": rows, "mean_layer": passed}
    results = read_json(classes.folder.report / "results.json")
    (shown,) = [model for model in results["models"] if model["name"] == "exits"]
    assert (shown["exit_layers"], shown["exit_rows"], shown["mean_layer"]) == ([1, 2, 3], rows, passed)
    (group,) = [group for group in results["groups"] if group["name"] == "exits"]
    assert group["mean_layer"] == passed
    page = (classes.folder.report / "report.md").read_text(encoding="utf-8")
    shares = ", ".join(f"{n}: {100 * count / len(part):.2f}" for n, count in zip((1, 2, 3), rows, strict=True))
    assert "left after layer, valid (%)" in page and "layers a row, valid" in page and shares in page

    # A confidence between those of the first exit, so that some rows continue to the next exit.
    with torch.no_grad():
        sure = model(**part.collate(np.arange(len(part)))).exits.softmax(-1).amax(-1)[0].sort().values
    widest = int((sure[1:] - sure[:-1]).argmax())
    between = float(sure[widest : widest + 2].mean())
    rows = leave_by_hand(model, part, between)
    assert rows[0] == len(part) - widest - 1 < len(part)
    model.confidence = between
    found = evaluate.count_exits(model, part, Workers.of(world, "fp32", 64))
    assert found == {"layers": [1, 2, 3], "rows": rows, "mean_layer": (rows[0] + 2 * rows[1] + 3 * rows[2]) / len(part)}
    assert evaluate.exits_in_words({"layers": [1, 4], "rows": [1, 3], "mean_layer": 3.25}) == (
        "left after layer 1: 25.0%, 4: 75.0%; 3.25 layers a row"
    )


def test_each_model_with_exits_is_timed(classes: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models with one architecture only one is timed, unless weights decide how many layers a row passes."""
    timed: list[int] = []

    def measure(models: dict[str, Any], *_: Any) -> dict[str, Any]:
        timed.append(len(models))
        return {"rows": 1, "repeats": 2, "rows_per_second": dict.fromkeys(models, 1.0), "milliseconds": {}}

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "load", lambda path: None)
    by_name = {member.name: member for _, member in classes.members()}
    for name, count in (("exits", 2), ("hinted", 1)):
        monkeypatch.setattr(speed, "tokenizer_name", lambda member, name=name: tokenizer_name(by_name[name]))
        twins = [("students", by_name[name]), ("students", by_name[name].model_copy(update={"name": "twin"}))]
        rates = speed.measure_run(twins, "valid", classes.folder)["rows_per_second"]["cpu_1"]
        assert rates == {f"students/{name}": 1.0, "students/twin": 1.0}
        assert timed[-1] == count


def test_pairs_with_made_up_rows(tmp_path: Path, world: World) -> None:
    plan = Plan(run(tmp_path, PAIRS, world, pairs=True))
    assert all(plan.stage_done(stage) for stage in ("prepare", "finetune", "precompute", "distill", "evaluate"))
    assert [plan.failure(name) for name in ("cnn", "small")] == [None, None]
    data = PreparedData.open(plan.folder)
    changed = data.part("transfer", "students").rows()
    assert {(MASK in row["text"], MASK in row["text_b"]) for row in changed} >= {(True, False), (False, True)}

"""A small run whose models were built but not trained: enough to be scored, used and reported."""

import json
import random
from dataclasses import dataclass

import pytest
import torch

from dtrain.data import PreparedData, tokenizer_name
from dtrain.data.preprocessing import write_preprocessing
from dtrain.models import build, parameter_count, save_model
from dtrain.plan import Plan
from dtrain.recipe import Recipe, load_recipe
from dtrain.runfolder import RunFolder, mark_done, write_json
from dtrain.stages import evaluate, prepare, report

RECIPE = """
name: small
output_dir: runs
data:
  train: train.jsonl
  valid: valid.jsonl
  test: test.jsonl
  columns: {text: sentence, label: label, id: id}
  max_length: 16
teachers:
  - {name: bert, model: {type: bert, hidden: 8, heads: 2, layers: 1, intermediate: 16, vocabulary_size: 120}}
students:
  - {name: cnn, model: {type: textcnn, embedding: 8, filters: 4}, grid: {seed: [1, 2, 3]}}
  - {name: scratch, model: {type: bilstm, embedding: 4, hidden: 4}, teachers: []}
  - {name: broken, model: {type: textcnn, embedding: 8, filters: 4}, optimizer: {lr: 1000.0}}
"""
WORDS = {"100": "球赛队员进攻胜负", "101": "股票银行利率基金", "102": "电影演员导演票房"}


@dataclass
class Run:
    recipe: Recipe
    folder: RunFolder
    plan: Plan
    data: PreparedData


@pytest.fixture(scope="session")
def run(world, tmp_path_factory) -> Run:
    """The run, evaluated and reported."""
    root = tmp_path_factory.mktemp("run")
    made = random.Random(7)
    for part, count in (("train", 80), ("valid", 40), ("test", 12)):
        with (root / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                label = made.choice(list(WORDS))
                text = "".join(made.choices(WORDS[label] + "的了在", k=made.randint(2, 20)))
                row = {"id": 500 + number, "sentence": text, "label": label, "label_desc": f"news_{label}"}
                if part == "test":
                    del row["label"], row["label_desc"]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    before = [f"data.{part}={root / part}.jsonl" for part in ("train", "valid", "test")]
    recipe = load_recipe(str(root / "recipe.yaml"), [*before, f"output_dir={root / 'runs'}"])
    plan = Plan(recipe)
    folder = plan.folder
    prepare.run(recipe, world, folder)
    run = Run(recipe, folder, plan, PreparedData.open(folder))
    for kind, member in plan.members():
        place = folder.model(kind, member.name)
        if member.name == "broken":
            failure = {
                "reason": "loss is nan at step 3",
                "final": True,
                "fingerprint": plan.model(kind, member.name),
            }
            write_json(place / "failed.json", failure)
        else:
            write_model(run, kind, member)
    evaluate.run(recipe, world, folder)
    report.run(recipe, world, folder)
    return run


def write_model(run, kind, member):
    """A model folder as training leaves it, with weights that follow from the seed."""
    name = tokenizer_name(member)
    torch.manual_seed(member.seed)
    model = build(
        member.model,
        vocabulary=run.data.vocabulary(name),
        labels=run.data.labels,
        pad_id=run.data.pad_id(name),
        tokenizer_path=run.data.tokenizer_path(name),
    )
    place = run.folder.model(kind, member.name)
    save_model(model, place, run.data.tokenizer_path(name), "a card")
    write_preprocessing(place, run.recipe.data, run.data.info)
    metrics = {
        "accuracy": 0.3 + member.seed / 100,
        "f1": 0.3,
        "loss": 1.1,
        "parameters": parameter_count(model),
        "bytes": (place / "model.safetensors").stat().st_size,
        "seconds_per_epoch": 2.5,
        "rows_per_second": 32.0,
        "best_epoch": 2.0,
        "steps": 6,
    }
    write_json(place / "metrics.json", metrics)
    history = [
        {"step": 3 * epoch, "epoch": float(epoch), "split": split, "loss": 1.0 / epoch, "accuracy": 0.3}
        for epoch in (1, 2)
        for split in ("train", "valid")
    ]
    write_json(place / "history.json", history)
    mark_done(place, run.plan.model(kind, member.name))

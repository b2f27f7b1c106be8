"""Models of numbers and of sets of labels stop after any step and go on bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from dtrain.errors import Stopped
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runfolder import file_fingerprint, read_json
from dtrain.runtime.distributed import World
from dtrain.stages import prepare
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training import state
from dtrain.training.members import Members
from dtrain.training.model_job import ModelJob
from tests.several.test_continued import train

WORDS = ["sun", "rain", "dog", "cat", "tree", "good"]
KINDS = {
    "regression": "task: regression, standardize: true",
    "multi_label": "task: multi_label, threshold: 0.4",
}


def write(folder: Path, task: str) -> None:
    draw = random.Random(1)
    for part, count in (("train", 45), ("valid", 15)):
        texts = [draw.sample(WORDS, draw.randint(1, 5)) for _ in range(count)]
        labels = [
            sum(map(WORDS.index, text)) / 3 if task == "regression" else sorted({*text} & {"sun", "rain", "dog"})
            for text in texts
        ]
        rows = [{"text": " ".join(text), "label": label} for text, label in zip(texts, labels, strict=True)]
        if part == "train" and task == "regression":
            rows[7]["label"] = None  # a row that only teachers would answer
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("task", KINDS)
def test_bit_for_bit(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """Asked in the middle of an epoch, at its end, and at once after going on; with dropout and AdamW's moments."""
    monkeypatch.setattr(state, "STOP_EVERY", 1)
    write(tmp_path, task)
    (tmp_path / "r.yaml").write_text(
        f"name: r\noutput_dir: {tmp_path}/runs\n"
        f"data: {{{KINDS[task]}, train: {tmp_path}/train.jsonl, valid: {tmp_path}/valid.jsonl, "
        "vocabulary: {min_count: 1, unit: word}}\n"
        "students: [{name: s, model: {type: bilstm, embedding: 6, hidden: 4, dropout: 0.3}, epochs: 3, batch_size: 8, "
        "evaluate_every: 4, optimizer: {lr: 0.02}}]\n"
    )
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    members = Members(PreparedTasks.open(recipe, plan.folder), world, plan.folder)

    def job(name: str) -> ModelJob:
        made = members.student(recipe.students[0], "identity", {})
        made.final, made.checkpoints = tmp_path / name / "model", tmp_path / name / "checkpoints"
        made.tensorboard = tmp_path / name / "tensorboard"
        return made

    train(world, job("undisturbed"))
    for asked in (1, 3, 0, 4):  # after 2 steps, 6 (of 6 in an epoch), 7 and 12
        with pytest.raises(Stopped):
            train(world, job("stopped"), asked)
    train(world, job("stopped"))
    one, other = tmp_path / "undisturbed" / "model", tmp_path / "stopped" / "model"
    assert file_fingerprint(one / "model.safetensors") == file_fingerprint(other / "model.safetensors")
    assert read_json(one / "history.json") == read_json(other / "history.json")
    steps = [entry["step"] for entry in read_json(one / "history.json") if entry["split"] == "valid"]
    assert steps == [4, 8, 12, 16, 18]

"""An encoder-decoder that is stopped after any step goes on bit for bit, with dropout and micro-batches."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")

from dtrain.errors import Stopped
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runfolder import file_fingerprint, read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training import state
from dtrain.training.members import Members
from dtrain.training.model_job import ModelJob
from tests.several.test_continued import StopAt, train
from tests.test_bad_seq2seq_input import written

TRAINED = "epochs: 2, batch_size: 4, accumulation: 2, evaluate_every: 2, label_smoothing: 0.1"
MODEL = "{type: marian, hidden: 8, layers: 1, heads: 2, vocabulary_size: 100, dropout: 0.2}"


def test_bit_for_bit(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "STOP_EVERY", 1)
    change = f"teachers=[{{name: big, model: {MODEL}, {TRAINED}}}]"
    recipe = load_recipe(str(written(tmp_path)), [change, "data.max_length=8"])
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    members = Members(PreparedTasks.open(recipe, plan.folder), world, plan.folder)

    def job(name: str) -> ModelJob:
        made = members.teacher(recipe.teachers[0], "identity")
        made.final, made.checkpoints = tmp_path / name / "model", tmp_path / name / "checkpoints"
        made.tensorboard = tmp_path / name / "tensorboard"
        return made

    train(world, job("undisturbed"))
    for asked in (0, 1, 1):  # questions until the next stop
        with pytest.raises(Stopped):
            train(world, job("stopped"), asked)
    train(world, job("stopped"))
    one, other = (tmp_path / name / "model" for name in ("undisturbed", "stopped"))
    assert file_fingerprint(one / "model.safetensors") == file_fingerprint(other / "model.safetensors")
    assert read_json(one / "history.json") == read_json(other / "history.json")
    assert len(read_json(one / "history.json")) == 6  # train and valid at steps 2, 4 and 6


WAYS = """students:
  - {name: words, losses: [{type: token_cross_entropy}, {type: word_level}], epochs: 2}
  - {name: sequences, rows: [sequences]}
  - {name: nearest, rows: [interpolated]}
  - {name: both, rows: [train, sequences], losses: [{type: token_cross_entropy}, {type: word_level}]}
  - {name: beside, rows: [train, sequences], answers: online, losses: [{type: word_level}]}
"""


@pytest.mark.distributed  # not of several ranks, but of thirty stages
def test_every_way_to_distil_goes_on_bit_for_bit(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students one after another, and each way's rows and teacher are there again after a stop."""
    monkeypatch.setattr(state, "STOP_EVERY", 1)
    path = written(tmp_path)
    students = [
        {"model": {"type": "marian", "hidden": 8, "layers": 1, "heads": 2, "dropout": 0.2, "tokenizer": "big"}}
        | {"epochs": 1, "batch_size": 4, "accumulation": 2, "evaluate_every": 2, **student}
        for student in yaml.safe_load(WAYS)["students"]
    ]
    teacher = f"teachers=[{{name: big, model: {MODEL}, epochs: 1}}]"
    knowledge = "knowledge={outputs: [token_logits, sequences], beam: 2, top_k: 4}"
    recipe = load_recipe(str(path), [teacher, knowledge, "data.max_length=8", f"students={json.dumps(students)}"])
    folder = Plan(recipe).folder
    for stage in (prepare, finetune, precompute):
        stage.run(recipe, world, folder)
    distill.run(recipe, world, folder)
    place = folder.model("students", "words").parent
    undisturbed = shutil.move(place, tmp_path / "undisturbed")
    shutil.rmtree(folder.root / "checkpoints", ignore_errors=True)
    stops = 0
    for asked in itertools.cycle((0, 1)):  # questions until the next stop
        monkeypatch.setattr(world, "stop", StopAt(asked))
        try:
            distill.run(recipe, world, folder)
            break
        except Stopped:
            stops += 1
    assert stops > 8
    for student in students:
        one, other = (root / student["name"] for root in (undisturbed, place))
        assert file_fingerprint(one / "model.safetensors") == file_fingerprint(other / "model.safetensors"), one
        assert read_json(one / "history.json") == read_json(other / "history.json")

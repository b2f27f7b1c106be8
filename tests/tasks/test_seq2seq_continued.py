"""An encoder-decoder that is stopped after any step goes on bit for bit, with dropout and micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")

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

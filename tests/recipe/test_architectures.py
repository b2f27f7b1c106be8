"""The registry of architectures: one from outside the package is two files, and a recipe trains it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import dtrain
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe import models as registry
from dtrain.recipe.models import Architecture, architectures, register_architecture
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, evaluate, finetune, precompute, prepare

SPEC = '''
from typing import ClassVar, Literal

from dtrain.recipe.models import Architecture, register_architecture
from dtrain.recipe.values import Share, Size


@register_architecture
class MeanSpec(Architecture):
    """The mean of a text's embeddings -> linear."""

    type: Literal["mean"]
    module: ClassVar[str] = "outside_mean:Mean"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    embedding: Size = 8
    dropout: Share = 0.0

    @property
    def feature_width(self) -> int:
        return self.embedding
'''
MODULE = """
from torch import nn

from dtrain.models import ClassifierOutput


class Mean(nn.Module):
    def __init__(self, *, vocab_size, classes, pad_token_id, embedding, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding, classes)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        states = self.embedding(input_ids) * attention_mask[..., None]
        features = states.sum(1) / attention_mask.sum(1, keepdim=True).clamp(min=1)
        return ClassifierOutput(self.classifier(self.dropout(features)), features)
"""
RECIPE = """
name: outside
output_dir: {root}/runs
data: {{train: {root}/rows.jsonl, valid: {root}/rows.jsonl, vocabulary: {{min_count: 1}}}}
teachers: [{{name: big, model: {{type: mean, embedding: 6}}, epochs: 1}}]
students:
  - name: small
    model: {{type: mean, embedding: 6}}
    losses: [{{type: soft_targets}}, {{type: feature_hint}}]
    epochs: 1
launch: {{processes: 1}}
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec and a module in a folder of their own, and the registry as it was afterwards."""
    monkeypatch.setattr(registry, "_ARCHITECTURES", architectures())
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outside_spec.py").write_text(SPEC)
    (tmp_path / "outside_mean.py").write_text(MODULE)
    rows = [{"text": f"{'good' if n % 2 else 'bad'} text {n}", "label": "ab"[n % 2]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=tmp_path))
    for name in ("outside_spec", "outside_mean"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_recipe_trains_one_from_outside(outside: Path, world: World) -> None:
    with pytest.raises(InputError, match=r"teachers\.0\.model\.type: allowed: .*'bert'.*, found 'mean'"):
        load_recipe(str(outside / "r.yaml"))
    __import__("outside_spec")
    recipe = load_recipe(str(outside / "r.yaml"))
    for stage in (prepare, finetune, precompute, distill, evaluate):
        stage.run(recipe, world, Plan(recipe).folder)
    student = Plan(recipe).folder.model("students", "small")
    assert read_json(student / "config.json")["model_type"] == "dtrain-mean"
    assert type(dtrain.load(student)).__name__ == "Mean"
    assert Plan(recipe).stage_done("distill") and Plan(recipe).stage_done("evaluate")


def test_its_keys_are_checked_as_those_of_others(outside: Path) -> None:
    __import__("outside_spec")
    for change, told in (
        ("students.0.model.embeding=5", r"students\.0\.model\.embeding: unknown key; did you mean 'embedding'\?"),
        ("students.0.model.embedding=-1", r"students\.0\.model\.embedding: .*greater than 0, found -1"),
        ("students.0.model.type=meen", r"students\.0\.model\.type: allowed: .*did you mean 'mean'\?"),
        ("students.0.model.embedding=5", r"small has 5 features and its teacher big 6"),
    ):
        with pytest.raises(InputError, match=told):
            load_recipe(str(outside / "r.yaml"), [change])


def test_every_architecture_says_what_it_is() -> None:
    assert {"bert", "nezha", "bilstm", "textcnn", "tagger", "idcnn"} <= architectures().keys()
    for name, spec in architectures().items():
        assert spec.tasks and spec.__doc__, name
        assert (spec.module is None) == issubclass(spec, registry.EncoderSpec), name
    assert [name for name, spec in architectures().items() if spec.stacked] == ["bilstm", "textcnn"]
    assert [name for name, spec in architectures().items() if spec.early_exits] == ["multi_exit"]


def test_names_are_given_once_and_tasks_are_said(outside: Path) -> None:
    bilstm: Any = architectures()["bilstm"]
    with pytest.raises(ValueError, match="'bilstm' is registered twice"):
        register_architecture(bilstm)

    class Nothing(Architecture):
        pass

    Nothing.model_fields["type"].annotation = bilstm.model_fields["type"].annotation
    registry._ARCHITECTURES.pop("bilstm")
    with pytest.raises(ValueError, match="tasks is empty"):
        register_architecture(Nothing)

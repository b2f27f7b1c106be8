"""The registry of output kinds: a kind from outside the package takes one line; a recipe can store it and learn from
it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dtrain.errors import InputError
from dtrain.knowledge import kinds
from dtrain.knowledge.kinds import OutputKind, find_kind, kind_names, register_kind
from dtrain.knowledge.reader import StoreReader
from dtrain.losses import registry as losses
from dtrain.losses.registry import register
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare

RECIPE = """
name: kinds
output_dir: {root}/runs
data: {{train: {root}/rows.jsonl, valid: {root}/rows.jsonl, vocabulary: {{min_count: 1}}}}
teachers: [{{name: big, model: {{type: textcnn, embedding: 6, filters: 4}}, epochs: 1}}]
students:
  - name: small
    model: {{type: bilstm, embedding: 6, hidden: 4}}
    losses: [{{type: cross_entropy}}, {{type: confidence_gap}}]
    epochs: 1
launch: {{processes: 1}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe; the registries are restored afterwards."""
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    monkeypatch.setattr(losses, "_LOSSES", dict(losses._LOSSES))
    rows = [{"text": f"{'good' if n % 2 else 'bad'} text {n}", "label": "ab"[n % 2]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=tmp_path))
    return str(tmp_path / "r.yaml")


def test_one_from_outside_is_stored_and_learnt_from(recipe: str, world: World) -> None:
    with pytest.raises(InputError, match="unknown loss 'confidence_gap'"):
        load_recipe(recipe)
    with pytest.raises(InputError, match=r"knowledge\.outputs\.0: allowed: 'logits', .* or 'sequences', found 'best'"):
        load_recipe(recipe, ["knowledge.outputs=[best]"])
    register_kind(OutputKind("best", "classification", lambda output: output.logits.amax(1, keepdim=True)))

    @register("best", "teachers.best", name="confidence_gap")
    def confidence_gap(student: torch.Tensor, teachers: torch.Tensor) -> torch.Tensor:
        return (student - teachers.mean(0)).square().sum(1)

    made = load_recipe(recipe)
    assert made.knowledge.outputs == ["best"]
    for stage in (prepare, finetune, precompute, distill):
        stage.run(made, world, Plan(made).folder)
    store = StoreReader.open(Plan(made).folder.knowledge("big"))
    assert store.outputs == ("best",) and store.width("best") == 1
    assert Plan(made).stage_done("distill")


def test_names_are_given_once(recipe: str) -> None:
    with pytest.raises(ValueError, match="'logits' is registered twice"):
        register_kind(find_kind("logits"))
    with pytest.raises(
        ValueError, match=r"unknown output 'logit' \(known: logits, features, emissions, marginals, token"
    ):
        find_kind("logit")


def test_one_that_may_not_be_stored_is_not_for_a_recipe(recipe: str) -> None:
    register_kind(OutputKind("states", "classification", lambda output: None, stored=False))
    assert "states" in kind_names("classification") and "states" not in kind_names("classification", stored=True)
    with pytest.raises(InputError, match=r"knowledge\.outputs\.0: allowed: .*, found 'states'"):
        load_recipe(recipe, ["students.0.losses=[{type: soft_targets}]", "knowledge.outputs=[states]"])

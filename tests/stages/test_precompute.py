"""A run that seems finished: a store or a model that lost or changed bytes is mended, not taken for complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import file_fingerprint
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare

RECIPE = """
name: mended
output_dir: {root}/runs
data: {{train: {root}/rows.jsonl, valid: {root}/rows.jsonl, vocabulary: {{min_count: 1}}}}
teachers: [{{name: cnn, model: {{type: textcnn, embedding: 8, filters: 4}}, epochs: 1}}]
students: [{{name: lstm, model: {{type: bilstm, embedding: 8, hidden: 4}}, epochs: 1}}]
knowledge: {{shard_rows: 10}}
launch: {{processes: 1}}
"""


@pytest.fixture
def recipe(tmp_path: Path, world: World) -> Recipe:
    rows = [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=tmp_path))
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    for stage in (prepare, finetune, precompute):
        stage.run(recipe, world, Plan(recipe).folder)
    return recipe


def test_a_damaged_shard_is_computed_again(recipe: Recipe, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    store = Plan(recipe).folder.knowledge("cnn")
    before = {path.name: file_fingerprint(path) for path in store.iterdir()}
    content = bytearray((store / "shard-00001.arrow").read_bytes())
    content[-1500] ^= 1  # the size stays
    (store / "shard-00001.arrow").write_bytes(content)
    assert Plan(recipe).stage_done("precompute"), "by the files' sizes"
    assert not Plan(recipe).complete("precompute")
    capsys.readouterr()

    precompute.run(recipe, world, Plan(recipe).folder)
    told = capsys.readouterr().out
    assert f"knowledge of cnn: {store / 'shard-00001.arrow'}: damaged: " in told
    assert "what is damaged is computed again" in told and "3 of 4 shards are there already" in told
    assert {path.name: file_fingerprint(path) for path in store.iterdir()} == before
    assert Plan(recipe).complete("precompute")
    distill.run(recipe, world, Plan(recipe).folder)
    assert Plan(recipe).stage_done("distill")


def test_a_whole_store_is_left_alone(recipe: Recipe, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    precompute.run(recipe, world, Plan(recipe).folder)
    assert "knowledge of cnn: complete, nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["teachers", "students"])
def test_a_damaged_model_is_trained_again(
    recipe: Recipe, world: World, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Its weights load without a word, and are not what was trained."""
    distill.run(recipe, world, Plan(recipe).folder)
    stage, page = ("finetune", finetune) if kind == "teachers" else ("distill", distill)
    (member,) = getattr(recipe, kind)
    weights = Plan(recipe).folder.model(kind, member.name) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])  # the size stays
    assert Plan(recipe).stage_done(stage), "by the files' sizes"
    capsys.readouterr()
    assert not Plan(recipe).complete(stage)
    told = f"{kind[:-1]} {member.name}: model.safetensors is damaged, so it is trained again\n"
    assert capsys.readouterr().out == told
    page.run(recipe, world, Plan(recipe).folder)
    assert weights.read_bytes() == content
    assert Plan(recipe).complete(stage) and Plan(recipe).complete("precompute")
    assert " is damaged" not in capsys.readouterr().out

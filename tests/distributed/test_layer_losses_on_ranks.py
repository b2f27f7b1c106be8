"""Losses between layers give the same student on one, two and three ranks, under every way of sharding.

With 42 rows in batches of 8, the last batch has two, so that one of three ranks has none. Dropout is off because each
rank draws its own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from dtrain.runfolder import read_json
from tests.distributed.test_sharded_teachers import distance
from tests.processes import dtrain, ended, start, start_ranks

pytestmark = pytest.mark.distributed
SHAPE = "type: bert, heads: 2, intermediate: 16, dropout: 0"
STUDENT = f"""model: {{{SHAPE}, layers: 2, hidden: 8, tokenizer: bert_t}}
    epochs: 2
    batch_size: 8
    optimizer: {{lr: 0.005}}
    parallel: data"""
RECIPE = f"""\
name: tiny
data: {{train: train.jsonl, transfer: more.txt, split: {{valid: 0.2}}, vocabulary: {{min_count: 1}}, max_length: 16}}
teachers:
  - {{name: bert_t, model: {{{SHAPE}, vocabulary_size: 120, layers: 4, hidden: 12}}, epochs: 1, batch_size: 16, optimizer: {{lr: 0.01}},
     domain_adversary: {{weight: 0.5, hidden: 8, rows: 0.5}}}}
students:
  - name: cut
    {STUDENT}
    accumulation: 2
    losses:
      - {{type: cross_entropy}}
      - {{type: hidden_mse}}
      - {{type: hidden_cosine}}
      - {{type: embedding_mse}}
      - {{type: hidden_hint, layers: [[1, 2]], weight: 0.1}}
      - {{type: vid, weight: 0.01}}
      - {{type: attention_mse}}
      - {{type: attention_kl}}
      - {{type: value_relations}}
      - {{type: qkv_relations, relation_heads: 4}}
      - {{type: attention_transfer, power: 4}}
      - {{type: fsp, layers: [[0, 0], [2, 4]], weight: 0.1}}
      - {{type: domain_adversary, between: labels, hidden: 8}}
  - name: whole
    {STUDENT}
    losses: [{{type: soft_targets}}, {{type: similarity_preserving, weight: 30}}]
launch: {{timeout: 60}}
"""
TOPICS = {"sport": "球赛队员进攻胜负", "money": "股票银行利率基金"}
STAGES = "prepare,finetune,precompute,distill"
STUDENTS = ("cut", "whole")


def write(folder: Path) -> None:
    folder.mkdir()
    draw = random.Random(0)

    def text(topic: str) -> str:
        return "".join(draw.choices(TOPICS[topic] + "的了", k=draw.randint(1, 12)))

    rows = [{"text": text(topic), "label": topic} for topic in [*TOPICS] * 20]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "more.txt").write_text("".join(text(topic) + "\n" for topic in [*TOPICS] * 5), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one rank, without micro-batches."""
    folder = tmp_path_factory.mktemp("ranks") / "one"
    write(folder)
    changes = ["launch.processes=1", "students.cut.accumulation=1"]
    codes, told = ended([start(["-m", "dtrain", "run", "recipe.yaml", *changes, "--stages", STAGES], folder)])
    assert codes == [0], told
    return folder


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_make_what_one_makes(one: Path, ranks: int) -> None:
    folder = one.parent / str(ranks)
    write(folder)
    codes, told = ended(start_ranks(["-m", "dtrain", "run", "recipe.yaml", "--stages", STAGES], folder, ranks=ranks))
    assert codes == [0] * ranks, told
    for name in STUDENTS:
        assert distance(one / "runs/tiny/students" / name, folder / "runs/tiny/students" / name) < 1e-4, name
        metrics, others = (read_json(run / "runs/tiny/students" / name / "metrics.json") for run in (one, folder))
        assert metrics["loss"] == pytest.approx(others["loss"], rel=1e-4)
        assert metrics["steps"] == others["steps"] >= 12


@pytest.mark.parametrize("way", ["fsdp2", "zero2", "zero3"])
def test_cut_up_models_make_what_one_makes(one: Path, way: str) -> None:
    folder = one.parent / way
    write(folder)
    changes = ["launch.processes=2", f"launch.accelerate_config={way}"]
    dtrain("run", "recipe.yaml", *changes, "--stages", STAGES, folder=folder)
    for name in STUDENTS:
        assert distance(one / "runs/tiny/students" / name, folder / "runs/tiny/students" / name) < 1e-4, name

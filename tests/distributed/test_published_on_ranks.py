"""Published distillation methods give the same models on one rank and on two: losses, weightings, teachers, students.

Dropout and token noise are off, because each rank draws its own. The teachers' outputs are computed while the teachers
are sharded.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from dtrain.runfolder import read_json
from tests.distributed.test_sharded_teachers import distance
from tests.processes import ended, start, start_ranks

pytestmark = pytest.mark.distributed
ENCODER = "{type: bert, hidden: 8, heads: 2, layers: 2, intermediate: 16, vocabulary_size: 120, dropout: 0}"
BAG = "{type: fasttext, embedding: 6, buckets: 32, dropout: 0}"
EXITS = f"{{type: multi_exit, encoder: {ENCODER}, exits: [1], confidence: 0.51, dropout: 0}}"
TRAINED = "epochs: 1, batch_size: 16, optimizer: {lr: 0.01}"
RECIPE = f"""\
name: tiny
data: {{train: train.jsonl, transfer: more.txt, split: {{valid: 0.2}}, vocabulary: {{min_count: 1}}, max_length: 16}}
knowledge: {{sharded: true}}
teachers:
  - {{name: good, model: {{type: bert_cnn, encoder: {ENCODER}, filters: 3, widths: [1, 2], dropout: 0}}, tolerance: {{k: 2}}, {TRAINED}}}
  - {{name: poor, model: {{type: textcnn, embedding: 4, filters: 2, widths: [1, 2, 3], dropout: 0}}, {TRAINED}}}
  - {{name: bag, model: {BAG}, {TRAINED}}}
  - {{name: exits, model: {EXITS}, {TRAINED}}}
students:
  - name: hinted
    model: {{type: textcnn, embedding: 4, filters: 2, widths: [1, 2, 3], dropout: 0}}
    teachers: [good, poor]
    losses:
      - {{type: cross_entropy, label_smoothing: 0.1}}
      - {{type: soft_targets, weighting: {{type: gradient, limit: 0.8}}}}
      - {{type: feature_hint, weighting: confidence}}
      - {{type: feature_cosine, weight: {{start: 1, end: 0.1}}}}
    {TRAINED.replace(", ", chr(10) + "    ")}
    parallel: data
  - name: regressed
    model: {{type: text_rcnn, embedding: 4, hidden: 3, features: 5, dropout: 0}}
    losses:
      - {{type: teacher_annealing, until: 0.5}}
      - {{type: logit_regression, weighting: entropy}}
      - {{type: cosine, teachers: [bag], weight: {{start: 1, shape: step, until: 0.5}}}}
    {TRAINED.replace(", ", chr(10) + "    ")}
    parallel: data
  - name: reverse
    model: {BAG}
    losses: [{{type: reverse_soft_targets, weighting: {{type: fixed, weights: {{good: 2, poor: 1, bag: 1, exits: 3}}}}}}]
    noisy: {{confidence: 0.4, balance: false, token_noise: 0}}
    {TRAINED.replace(", ", chr(10) + "    ")}
    parallel: data
  - name: leaving
    model: {EXITS}
    {TRAINED.replace(", ", chr(10) + "    ")}
    parallel: data
launch: {{timeout: 60}}
"""
TOPICS = {"sport": "球赛队员进攻胜负", "money": "股票银行利率基金"}
RUN = ["-m", "dtrain", "run", "recipe.yaml", "--stages", "prepare,finetune,precompute,distill"]


def write(folder: Path) -> None:
    """A third of the rows have a single character, so that some batches have no n-grams at all."""
    draw = random.Random(0)

    def text(topic: str) -> str:
        return "".join(
            draw.choices(TOPICS[topic] + "的了", k=draw.choice([1, draw.randint(2, 6), draw.randint(7, 14)]))
        )

    rows = [{"text": text(topic), "label": topic} for topic in [*TOPICS] * 50]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "more.txt").write_text("".join(text(topic) + "\n" for topic in [*TOPICS] * 12), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def test_two_ranks_make_what_one_makes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    codes, told = ended([start([*RUN, "launch.processes=1"], tmp_path / "one")])
    assert codes == [0], told
    codes, told = ended(start_ranks(RUN, tmp_path / "two"))
    assert codes == [0, 0], told
    one, two = (tmp_path / name / "runs/tiny" for name in ("one", "two"))
    names = [f"teachers/{name}" for name in ("good", "poor", "bag", "exits")]
    names += [f"students/{name}" for name in ("hinted", "regressed", "reverse", "leaving")]
    for name in names:
        assert distance(one / name, two / name) < 1e-4, name
        metrics, others = (read_json(run / name / "metrics.json") for run in (one, two))
        assert metrics["loss"] == pytest.approx(others["loss"], rel=1e-4)
        assert metrics["steps"] == others["steps"] >= 4

"""A teacher of one language and a student of another through every stage: two ranks give the same results as one."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from dtrain import Predictor
from dtrain.knowledge.reader import StoreReader
from dtrain.runfolder import read_json
from tests.distributed.test_sharded_teachers import distance
from tests.processes import ended, start, start_ranks

pytestmark = pytest.mark.distributed
WORDS = {"good": "好", "fine": "佳", "bad": "坏", "poor": "糟", "book": "书", "page": "页", "the": "这", "is": "是"}
GOOD, BAD = ["good", "fine"], ["bad", "poor"]
TRAINED = "batch_size: 16, optimizer: {lr: 0.02}"
RECIPE = f"""\
name: two
seed: 3
data:
  train: {{path: en.jsonl, columns: {{en: text}}}}
  transfer: [{{path: pairs.tsv, columns: {{en: 0, zh: 1}}}}, {{path: more.txt, columns: {{zh: 0}}}}]
  test: {{path: zh.jsonl, columns: {{zh: text}}}}
  vocabulary: {{min_count: 1}}
teachers:
  - name: english
    reads: en
    model: {{type: bert, layers: 1, hidden: 16, heads: 2, vocabulary_size: 100, dropout: 0}}
    epochs: 4
    {TRAINED.replace(", ", chr(10) + "    ")}
    domain_adversary: {{weight: 0.05, hidden: 4}}
knowledge: {{dtype: float32, shard_rows: 50}}
students:
  - {{name: alone, reads: zh, model: {{type: bilstm, embedding: 8, hidden: 8, dropout: 0}}, epochs: 5, {TRAINED},
     losses: [{{type: soft_targets}}]}}
  - {{name: adverse, reads: zh, model: {{type: textcnn, embedding: 8, filters: 8, dropout: 0}}, parallel: data, accumulation: 2,
     epochs: 5, {TRAINED}, losses: [{{type: soft_targets}}, {{type: domain_adversary, weight: 0.05, hidden: 4}}]}}
launch: {{timeout: 120}}
report: {{latency: false}}
"""
RUN = ["-m", "dtrain", "run", "recipe.yaml"]


def write(folder: Path) -> None:
    draw = random.Random(0)

    def text(number: int) -> list[str]:
        return draw.choices((GOOD, BAD)[number % 2] + list(WORDS)[4:], k=draw.randint(3, 6)) + [
            (GOOD, BAD)[number % 2][0]
        ]

    def chinese(words: list[str]) -> str:
        return "".join(WORDS[word] for word in words)

    def rows(name: str, texts: list[str]) -> None:
        found = [{"text": each, "label": ("good", "bad")[number % 2]} for number, each in enumerate(texts)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")

    rows("en.jsonl", [" ".join(text(number)) for number in range(60)])
    rows("zh.jsonl", [chinese(text(number)) for number in range(40)])
    pairs = [text(number) for number in range(90)]
    (folder / "pairs.tsv").write_text("".join(f"{' '.join(p)}\t{chinese(p)}\n" for p in pairs), encoding="utf-8")
    (folder / "more.txt").write_text("".join(f"{chinese(text(n))}。\n" for n in range(20)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runs of one rank and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder in (one, two):
        write(folder)
    codes, told = ended([start([*RUN, "launch.processes=1"], one), *start_ranks(RUN, two)], 300)
    assert set(codes) == {0}, told
    return one / "runs/two", two / "runs/two"


def test_two_ranks_make_what_one_makes(runs: tuple[Path, Path]) -> None:
    for model in ("teachers/english", "students/alone", "students/adverse"):
        assert distance(runs[0] / model, runs[1] / model) < 1e-4, model
        first, second = (read_json(run / model / "evaluation.json")["parts"] for run in runs)
        (part,) = first  # a model is scored on the parts whose labelled rows have its side
        assert part == ("valid" if model.startswith("teachers") else "test")
        assert first[part]["scores"]["loss"] == pytest.approx(second[part]["scores"]["loss"], rel=1e-3)
    scores = read_json(runs[0] / "students/alone/evaluation.json")["parts"]["test"]["scores"]
    assert scores["rows"] == 40 and scores["accuracy"] > 0.8  # it has seen no Chinese label


def test_stores_and_scores_are_the_same_bytes_on_any_number_of_ranks(runs: tuple[Path, Path], tmp_path: Path) -> None:
    place = runs[0].parent.parent

    def outputs(folder: Path) -> dict[str, bytes]:
        files = [*folder.rglob("knowledge/*/shard-*"), *folder.rglob("evaluation.json")]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    expected = outputs(place)
    again = tmp_path / "again"
    shutil.copytree(place, again)
    shutil.rmtree(again / "runs/two/knowledge")
    for file in again.rglob("evaluation.json"):
        file.unlink()
    for stage in ("precompute", "evaluate"):
        codes, told = ended(start_ranks(["-m", "dtrain", stage, "recipe.yaml"], again, 3), 300)
        assert set(codes) == {0}, told
    assert outputs(again) == expected


def test_what_is_left_knows_its_side(runs: tuple[Path, Path]) -> None:
    one = runs[0]
    store = StoreReader.open(one / "knowledge/english")
    assert len(store) == 54 + 90
    first = 54 + 6 + 40  # id of the first transfer row, after those of the other parts
    assert store.holds(np.arange(first, first + 90)).all()
    assert not store.holds(np.arange(first + 90, first + 90 + 20)).any()  # rows with only the Chinese side
    found = read_json(one / "students/adverse/metrics.json")
    assert found["training_rows"] == 90 + 20 and read_json(one / "students/alone/metrics.json")["training_rows"] == 90
    assert read_json(one / "teachers/english/metrics.json")["training_rows"] == 2 * 54
    assert "- side of a row that it reads: zh" in (one / "students/alone/README.md").read_text(encoding="utf-8")
    assert Predictor(one / "students/alone")(["这书好佳"])[0]["label"] == "good"
    curves = read_json(one / "students/adverse/history.json")
    assert all("domain_adversary" in entry for entry in curves if entry["split"] == "train")
    page = (one / "report/report.md").read_text(encoding="utf-8")
    assert "accuracy, valid (%)" in page and "accuracy, test (%)" in page
    told = "the side it reads: en (valid 6): english; zh (test 40): alone, adverse. Scores on different rows do not compare."
    assert told in page and told in (one / "report/report.html").read_text(encoding="utf-8")

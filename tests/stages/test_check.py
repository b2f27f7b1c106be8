"""check: what a recipe and its data come to, in a few lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.__main__ import main
from dtrain.launch import launches_in_words
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runtime.distributed import World
from dtrain.stages import check, prepare

TOPICS = """\
name: topics
output_dir: {folder}/runs
data:
  train: [{folder}/a.jsonl, {folder}/b.jsonl]
  test: {folder}/test.jsonl
  transfer: {folder}/more.txt
  max_length: 12
teachers:
  - {{name: bert, model: {{type: bert, size: tiny, vocabulary_size: 100}}}}
students:
  - {{name: cnn, model: {{type: textcnn}}, grid: {{seed: [1, 2]}}}}
"""
NAMES = """\
name: names
output_dir: {folder}/runs
data: {{task: tagging, train: {folder}/train.bio, valid: {folder}/train.bio, max_length: 8}}
teachers: [{{name: crf, model: {{type: tagger}}}}]
students: [{{name: cnn, model: {{type: idcnn}}}}]
"""


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def topics(tmp_path: Path) -> Path:
    short, long = "球赛" * 3, "股票" * 8
    write_rows(tmp_path / "a.jsonl", [{"text": short, "label": "sport"}] * 30)
    write_rows(tmp_path / "b.jsonl", [{"text": long, "label": "money"}] * 10)
    write_rows(tmp_path / "test.jsonl", [{"text": long}] * 3)
    (tmp_path / "more.txt").write_text("a b c d e f g\n\n", encoding="utf-8")  # seven words, thirteen characters
    path = tmp_path / "topics.yaml"
    path.write_text(TOPICS.format(folder=tmp_path), encoding="utf-8")
    return path


def test_rows_labels_and_models_in_a_few_lines(topics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(topics)]) == 0
    told, folder = capsys.readouterr(), topics.parent
    assert told.out.splitlines() == [
        f"topics -> {folder}/runs/topics",
        f"train     36 rows  {folder}/a.jsonl, {folder}/b.jsonl",
        "valid      4 rows  cut from data.train",
        f"test       3 rows  {folder}/test.jsonl, without labels",
        f"transfer   2 rows  {folder}/more.txt",
        "2 labels: money 9, sport 27",
        "cut at data.max_length 12: about 13 (28.9%) for bert, about 14 (31.1%) for students",
        "teachers: bert (bert)",
        "students: cnn-seed1 (textcnn), cnn-seed2 (textcnn)",
        *launches_in_words(load_recipe(str(topics))),  # of this machine's cores, see tests/test_ranks.py
        "the recipe can be run; --resolved prints it with every default",
    ]
    assert "warning: transfer: 1 row with an empty text; kept, as the unknown token\n" in told.err
    assert not (folder / "runs").exists()


def test_what_cannot_be_known_of_models_is_said(topics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt folder passed for a hub model without a word."""
    assert main(["check", str(topics), "teachers.bert.model={type: bert, pretrained: bert-base-chines}"]) == 0
    told = capsys.readouterr().out
    assert (
        "\ndownloaded from the Hugging Face hub by the first run: bert-base-chines\n  (without a network: name a"
        in told
    )


@pytest.mark.parametrize(
    ("sizes", "told"), [("epsilon: 0.2", True), ("epsilon: 0.2, norm: relative", False), ("", False)]
)
def test_an_epsilon_without_its_norm_is_told(
    topics: Path, capsys: pytest.CaptureFixture[str], sizes: str, told: bool
) -> None:
    assert main(["check", str(topics), f"teachers.bert.adversarial={{type: fgm, {sizes}}}"]) == 0
    assert ("teachers.bert.adversarial: epsilon 0.2 is a norm itself" in capsys.readouterr().err) == told


def test_of_prepared_rows_the_same_is_said_as_counted(
    topics: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(topics)]) == 0
    before = capsys.readouterr()
    recipe = load_recipe(str(topics))
    prepare.run(recipe, world, Plan(recipe).folder)
    capsys.readouterr()
    for source in topics.parent.glob("*.jsonl"):
        assert source.stat().st_size  # the files are there, and their rows are not read again
    assert main(["check", str(topics)]) == 0
    after = capsys.readouterr()
    assert after.out == before.out.replace("about ", "")
    assert after.err == before.err


def test_tags_that_are_read_as_o_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.bio").write_text(
        "张 B-PER\n三 I-PER\n在 O\n\n" * 30 + "北 I-LOC\n京 B-LOC\n\n", encoding="utf-8"
    )
    path = tmp_path / "names.yaml"
    path.write_text(NAMES.format(folder=tmp_path), encoding="utf-8")
    assert main(["check", str(path)]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[1:4] == [
        f"train     31 documents  {tmp_path}/train.bio",
        f"valid     31 documents  {tmp_path}/train.bio",
        "2 entity types, scheme bio: LOC 1, PER 30",
    ]
    assert f"{tmp_path}/train.bio: 1 tag(s) are part of no complete entity in scheme bio and are read as O" in told.err
    assert f"{tmp_path}/train.bio: is used for both data.train and data.valid" in told.err


def test_the_resolved_recipe_is_printed_alone(topics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(topics), "--resolved"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(str(again)) == load_recipe(str(topics))


def test_a_student_whose_answers_mean_nothing_is_remarked_on(tmp_path: Path) -> None:
    """All of its losses compare layers: its classifier is left as it was drawn."""
    shape = {"type": "bert", "layers": 1, "hidden": 8, "heads": 2}
    layers = {"model": {**shape, "tokenizer": "t"}, "losses": [{"type": "hidden_mse"}]}
    task = {"name": "task", "losses": [{"type": "soft_targets"}]}
    students = [
        {"name": "layers", **layers},
        {"name": "both", **layers, "losses": [*layers["losses"], {"type": "cross_entropy"}]},
        {"name": "phased", "model": layers["model"], "phases": [{"name": "one", "losses": layers["losses"]}, task]},
    ]
    recipe = {
        "name": "r",
        "data": {"train": "x.jsonl"},
        "teachers": [{"name": "t", "model": shape}],
        "students": students,
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    (remark,) = check._untrained_heads(load_recipe(str(tmp_path / "r.yaml")))
    assert remark.startswith("students.layers.losses: none reads its classifier")

"""Bad input of task `tagging`: exit code 2, one line a problem with file and line or key, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.__main__ import main
from tests.test_bad_input import check_refused

RECIPE = """\
name: bad
output_dir: {folder}/runs
data:
  task: tagging
  train: {folder}/train.bio
  valid: {folder}/valid.bio
teachers:
  - name: crf
    model: {{type: tagger, embedding: 8, lstm: 4}}
students:
  - name: cnn
    model: {{type: idcnn, embedding: 8, filters: 4}}
launch: {{processes: 1}}
"""
GOOD = "王 B-PER\n明 I-PER\n来 O\n\n北 B-LOC\n京 I-LOC\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name in ("train.bio", "valid.bio"):
        (tmp_path / name).write_text(GOOD, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return path


def test_the_recipe_itself_is_good(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--resolved"]) == 0
    assert "metric: f1" in capsys.readouterr().out


KEYS = [
    ("teachers.0.model={type: nezha}", "teachers.0.model.type", "write {type: tagger, encoder: {type: nezha, ...}}"),
    ("teachers.0.model={type: textcnn}", "teachers.0.model.type", "allowed: tagger, idcnn"),
    ("teachers.0.model.fusion=dynamic", "teachers.0.model.fusion", "needs an encoder"),
    ("teachers.0.model.encoder={type: bert, hiden: 8}", "model.encoder.hiden", "did you mean 'hidden'"),
    ("teachers.0.model={type: tagger, crf: false, constrain: true}", "teachers.0.model.constrain", "needs crf: true"),
    ("teachers.0.metric=f1_micro", "teachers.0.metric", "'f1_macro'"),
    ("teachers.0.label_smoothing=0.1", "teachers.0.label_smoothing", "not for task 'tagging'"),
    ("teachers.0.adversarial={type: fgn}", "teachers.0.adversarial.type", "did you mean 'fgm'"),
    ("teachers.0.adversarial={type: fgm, epsilon: 0}", "teachers.0.adversarial.epsilon", "greater than 0"),
    ("teachers.0.schedule={type: exponential, decay: 2}", "teachers.0.schedule.decay", "less than or equal to 1"),
    ("students.0.losses=[{type: soft_targets}]", "students.0.losses.0", "emission_regression, fsp,"),
    ("knowledge.outputs=[emissions]", "knowledge.outputs", "lacks 'marginals', which the student cnn"),
    ("knowledge.outputs=[logits, marginals]", "knowledge.outputs", "allowed: emissions, marginals"),
    ("knowledge.top_k=3", "knowledge.top_k", "not for task 'tagging'"),
    ("data.scheme=bioe", "data.scheme", "did you mean 'bioes'"),
    ("data.scheme=bmes", "train.bio:2", "'I-PER' is not in scheme bmes"),
    ("data.format=csv", "data.format", "not for task 'tagging'"),
    ("data.labels=[PER]", "train.bio:5", "LOC"),
    ("data.vocabulary.unit=word", "data.vocabulary.unit", "characters"),
    ("data.columns.text_b=x", "data.columns.text_b", "only for task 'pairs'"),
    ("data.task=classification", "teachers.0.model.type", "allowed: bert, nezha, bert_cnn, multi_exit, bilstm,"),
]


@pytest.mark.parametrize(("override", "place", "reason"), KEYS, ids=[key[0] for key in KEYS])
def test_keys(recipe: Path, capsys: pytest.CaptureFixture[str], override: str, place: str, reason: str) -> None:
    code = main(["run", str(recipe), override])
    check_refused(capsys.readouterr().err, code, recipe.parent, place, reason)


FILES = {
    "empty": (b"", ["train.bio", "empty"]),
    "blank lines": (b"\n\n\n", ["train.bio", "no rows"]),
    "one column": ("王 B-PER\n明\n".encode(), ["train.bio:2"]),
    "no tag at all": ("王 PER\n".encode(), ["train.bio:1", "'PER' is no tag"]),
    "prefix of no scheme": ("王 X-PER\n".encode(), ["train.bio:1", "X-PER"]),
    "broken UTF-8": ("王 B-PER\n".encode() + b"\xff O\n", ["train.bio:2", "UTF-8"]),
    "two schemes": ("王 S-PER\n来 M-PER\n去 L-PER\n".encode(), ["data.scheme", "train.bio"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files(recipe: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, expected = FILES[name]
    (recipe.parent / "train.bio").write_bytes(content)
    code = main(["run", str(recipe)])
    check_refused(capsys.readouterr().err, code, recipe.parent, *expected)


def test_a_type_never_seen_in_training(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "valid.bio").write_text("王 B-PRE\n", encoding="utf-8")
    code = main(["run", str(recipe)])
    check_refused(capsys.readouterr().err, code, recipe.parent, "valid.bio:1", "'PRE'", "did you mean 'PER'")


SPANS = [
    ({"text": "王明来", "label": {"PER": {"王明": [[0, 2]]}}}, "its end must be the place of its last character"),
    ({"text": "王明来", "label": {"PER": {"王明": [[0, 5]]}}}, "not within the text"),
    ({"text": "王明来", "label": {"PER": {"王": [[0, 0]]}, "LOC": {"王": [[0, 0]]}}}, "overlap"),
    ({"text": "王明来", "label": {"PER": [[0, 0]]}}, "must hold an object of surfaces"),
    ({"text": "王明来"}, "has no 'label'"),
    ({"sentence": "王明来", "label": {}}, "has no 'text'"),
    ({"text": 3, "label": {}}, "must be a text"),
]


@pytest.mark.parametrize(("row", "reason"), SPANS)
def test_span_files(recipe: Path, capsys: pytest.CaptureFixture[str], row: dict[str, object], reason: str) -> None:
    good = {"text": "王明来", "label": {"PER": {"王明": [[0, 1]]}}}
    path = recipe.parent / "train.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in (good, row)), encoding="utf-8")
    code = main(["run", str(recipe), f"data.train={path}"])
    check_refused(capsys.readouterr().err, code, recipe.parent, "train.jsonl:2", reason)

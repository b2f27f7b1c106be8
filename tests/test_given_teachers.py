"""Teachers that are taken from a model folder without training: noisy students in two rounds, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.__main__ import main
from dtrain.data import PreparedData, tokenizer_name
from dtrain.data.encode import MASK
from dtrain.errors import EveryStudentFailed, InputError
from dtrain.knowledge.reader import StoreReader
from dtrain.models import load
from dtrain.plan import Plan
from dtrain.predict.predictor import Predictor
from dtrain.recipe import Recipe, dump_recipe, load_recipe
from dtrain.runfolder import is_done, read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, evaluate, finetune, precompute, prepare, report
from dtrain.stages.check import check_inputs

WORDS = {"sport": "球赛队员进攻胜负", "money": "股票银行利率基金"}
RECIPE = """
name: round1
output_dir: {root}/runs
data:
  train: {root}/train.jsonl
  valid: {root}/valid.jsonl
  transfer: {root}/more.txt
  max_length: 16
  vocabulary: {{min_count: 1}}
  augment: {{n_iter: 2, p_mask: 0.3}}
teachers:
  - {{name: bert, model: {{type: bert, hidden: 8, heads: 2, layers: 1, intermediate: 16, vocabulary_size: 120}}, epochs: 1}}
students:
  - {{name: noisy, model: {{type: bilstm, embedding: 8, hidden: 4}}, noisy: {{confidence: 0.1}}, epochs: 1}}
  - {{name: cnn, model: {{type: textcnn, embedding: 8, filters: 4}}, noisy: {{confidence: 0.1}}, epochs: 1}}
report: {{latency: false, splits: [valid]}}
"""
# Round 2: another vocabulary (of fewer characters), other architectures, and two students of round 1 as teachers.
ROUND2 = [
    "name=round2",
    "data.vocabulary.min_count=60",
    "data.augment=null",
    "teachers=[{{name: big, from: {root}/runs/round1/students/noisy}}, {{name: small, from: {root}/runs/round1/students/cnn}},"
    " {{name: first, from: {root}/runs/round1/teachers/bert}}]",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """Run all stages of both rounds."""
    root = tmp_path_factory.mktemp("rounds")
    made = random.Random(5)

    def text(label: str) -> str:
        return "".join(made.choices(WORDS[label] + "的了", k=made.randint(2, 12)))

    for part, count in (("train", 48), ("valid", 24)):
        rows = [{"text": text(label), "label": label} for label in list(WORDS) * (count // 2)]
        (root / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "more.txt").write_text("".join(text(label) + "\n" for label in list(WORDS) * 15), encoding="utf-8")
    (root / "r.yaml").write_text(RECIPE.format(root=root), encoding="utf-8")
    stages = [prepare, finetune, precompute, distill, evaluate]
    for recipe, modules in ((round1(root), stages), (round2(root), [*stages, report])):
        check_inputs(recipe)
        for stage in modules:
            stage.run(recipe, world, Plan(recipe).folder)
    return root


def round1(root: Path) -> Recipe:
    return load_recipe(str(root / "r.yaml"))


def round2(root: Path, *changes: str) -> Recipe:
    return load_recipe(str(root / "r.yaml"), [*(line.format(root=root) for line in ROUND2), *changes])


def test_two_rounds_end_with_a_report(root: Path) -> None:
    recipe = round2(root)
    plan = Plan(recipe)
    stages = ("prepare", "finetune", "precompute", "distill", "evaluate", "report")
    assert [stage for stage in stages if not plan.stage_done(stage)] == []
    results = read_json(plan.folder.report / "results.json")
    types = {model["name"]: model["type"] for model in results["models"]}
    assert types == {"big": "bilstm", "small": "textcnn", "first": "bert", "noisy": "bilstm", "cnn": "textcnn"}
    taught = {model["name"]: model["teachers"] for model in results["models"] if model["kind"] == "students"}
    assert taught == {name: ["big", "small", "first"] for name in ("noisy", "cnn")}
    assert "s / epoch" in (plan.folder.report / "report.md").read_text(encoding="utf-8")
    # round 1 had masks in its synthetic rows, which were read by a BERT and stored
    texts = PreparedData.open(Plan(round1(root)).folder).rows("transfer")["text"]
    assert any(MASK in text for text in texts)


def test_where_no_student_has_a_model_the_command_fails_again(
    root: Path, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only the first time: a final failure is not tried again, but is no success, either."""
    model = "model: {type: bilstm, embedding: 8, hidden: 4}, noisy: {confidence: 0.999999}"
    recipe = round2(root, "name=hopeless", f"students=[{{name: s, {model}}}, {{name: t, {model}, seed: 3}}]")
    folder = Plan(recipe).folder
    for stage in (prepare, finetune, precompute):
        stage.run(recipe, world, folder)
    for _ in range(2):
        with pytest.raises(EveryStudentFailed, match=r"^every student failed \(s, t\)$"):
            distill.run(recipe, world, folder)
    assert Plan(recipe).stage_done("distill")
    (folder.root / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert main(["run", str(folder.root / "recipe.yaml"), "--stages", "distill"]) == 1
    assert "every student failed (s, t)" in capsys.readouterr().err

    # One failed for good in an earlier run, and the other one fails now, as for a full disk.
    (folder.model("students", "t") / "failed.json").unlink()
    monkeypatch.setattr(distill, "_train", lambda *arguments, **named: ["t"])
    with pytest.raises(EveryStudentFailed, match=r"^every student failed \(s, t\)$"):
        distill.run(recipe, world, folder)


@pytest.mark.parametrize(
    ("name", "source"), [("big", "students/noisy"), ("small", "students/cnn"), ("first", "teachers/bert")]
)
def test_a_given_teacher_answers_as_its_folder_does(name: str, source: str, root: Path) -> None:
    """A Predictor of the folder (which shares no code with the store) gives the same texts the same probabilities."""
    recipe = round2(root)
    folder = Plan(recipe).folder
    data, origin = PreparedData.open(folder), root / "runs/round1" / source
    part = data.part("transfer", tokenizer_name(next(t for t in recipe.teachers if t.name == name)))
    stored = StoreReader.open(folder.knowledge(name)).logits(part.ids).softmax(-1).numpy()
    alone = Predictor(origin)(part.rows()["text"])
    np.testing.assert_allclose(stored, [[row["scores"][label] for label in data.labels] for row in alone], atol=2e-3)
    published = folder.model("teachers", name)
    own = load(published).state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in load(origin).state_dict().items())
    scores = read_json(published / "evaluation.json")["parts"]["valid"]["scores"]
    assert scores["accuracy"] == read_json(published / "metrics.json")["accuracy"]
    assert scores["accuracy"] == read_json(origin / "evaluation.json")["parts"]["valid"]["scores"]["accuracy"]


def test_its_own_tokenizer_comes_along(root: Path) -> None:
    data = PreparedData.open(Plan(round2(root)).folder)
    first = PreparedData.open(Plan(round1(root)).folder)
    assert data.vocabulary("students") < data.vocabulary("big") == first.vocabulary("students")
    for part in ("train", "valid"):
        np.testing.assert_array_equal(data.part(part, "big").tokens, first.part(part, "students").tokens)
        np.testing.assert_array_equal(data.part(part, "first").tokens, first.part(part, "bert").tokens)


def test_nothing_is_done_twice_and_all_follows_from_the_content(root: Path, tmp_path: Path, world: World) -> None:
    recipe = round2(root)
    plan = Plan(recipe)
    copied = tmp_path / "elsewhere"
    shutil.copytree(root / "runs/round1/students/noisy", copied)
    for name in ("README.md", "metrics.json", "evaluation.json", "done.json", "history.json"):
        (copied / name).unlink()
    moved = round2(root, f"teachers.big.from={copied}")
    assert Plan(moved).model("teachers", "big") == plan.model("teachers", "big")
    assert Plan(moved).knowledge("big") == plan.knowledge("big")
    before = (plan.folder.model("teachers", "big") / "metrics.json").stat().st_mtime_ns
    finetune.run(moved, world, plan.folder)
    assert (plan.folder.model("teachers", "big") / "metrics.json").stat().st_mtime_ns == before
    for name in ("model.safetensors", "config.json", "tokenizer.json", "preprocessing.json"):
        text = (copied / name).read_bytes()
        (copied / name).write_bytes(text + b" ")
        changed = Plan(round2(root, f"teachers.big.from={copied}"))
        assert changed.model("teachers", "big") != plan.model("teachers", "big")
        assert not is_done(plan.folder.model("teachers", "big"), changed.model("teachers", "big"))
        (copied / name).write_bytes(text)
    assert Plan(moved).model("teachers", "small") == plan.model("teachers", "small")
    written = tmp_path / "resolved.yaml"
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(written)) == recipe
    again = Plan(load_recipe(str(written)))
    assert [again.model(k, m.name) for k, m in again.members()] == [plan.model(k, m.name) for k, m in plan.members()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["teachers=[{{name: t, from: {root}/none}}]"], r"^teachers\.t\.from: no such folder .*/none \(allowed: a model fold"),
        (["teachers=[{{name: t, from: {root}/runs}}]"], r"holds no config\.json, model\.safetensors, preprocessing\.json "),
        (["name=round1"], r"^teachers\.big\.from: .*students/noisy is of this very run"),
        (["data.normalize.lower=false"], r"reads texts with normalize\.lower True \(allowed: that of data\.normalize\.lower, False"),
        (["data.max_length=600"], r"^teachers\.first\.from: .* reads 512 tokens at most \(allowed: data\.max_length, 600"),
        (["data.labels=[money, sport, other]"],
         r"^teachers\.big\.from: .* has the labels money, sport \(allowed: those of data, money, sport, other\)"),
        (["data.labels=[sport, money]"], r"has the labels money, sport \(allowed: those of data in this order, sport, money\)"),
        (["data.task=pairs", "data.columns.text_b=other"],
         r"is a model for task 'classification' \(allowed: data\.task, 'pairs'\)"),
        (["students=[{{name: s, model: {{type: textcnn, filters: 5, widths: [2]}}, losses: [{{type: feature_hint}}],"
          " teachers: [small]}}]"],
         r"^teachers\.small\.from: has 12 features, and s, which compares its 5 by feature_hint, another number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: list[str], message: str, root: Path, world: World) -> None:
    recipe = round2(root, f"output_dir={root}/refused", *(line.format(root=root) for line in changes))
    if "name=round1" in changes:
        recipe.output_dir = str(root / "runs")
    folder = Plan(recipe).folder
    with pytest.raises(InputError, match=message):
        check_inputs(recipe)
    if recipe.name != "round1":
        with pytest.raises(InputError, match=message):
            prepare.run(recipe, world, folder)
        assert not (folder.data / "rows").exists()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("{name: t, from: x, epochs: 2}", r"r\.yaml:3: teachers\.0\.epochs: is not for a teacher taken `from` a folder"),
        ("{name: t, from: x, model: {type: bilstm}}", r"r\.yaml:3: teachers\.0\.model: is not for .*\(allowed: name, from, task, reads\)"),
        ("{name: t, from: ''}", r"teachers\.0\.from: string should have at least 1 character"),
        ("{name: t, form: x}", r"teachers\.0\.form: unknown key; did you mean 'from'\?"),
        ("{name: t, model: {type: given, folder: x}}", r"teachers\.0\.model\.type: allowed: 'bert', .*found 'given'"),
        ("{name: students, from: x}", r"teachers\.0\.name: 'students' is what the students' tokenizer is called"),
    ],
)  # fmt: skip
def test_what_a_recipe_may_say(teacher: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\ndata: {{train: a.jsonl}}\nteachers: [{teacher}]\nstudents: []\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        check_inputs(load_recipe(str(path)))


def test_a_folder_that_cannot_be_read(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(root / "runs/round1/students/noisy", folder)

    def problems() -> Any:
        with pytest.raises(InputError) as caught:
            check_inputs(round2(root, f"teachers=[{{name: t, from: {folder}}}]", f"output_dir={tmp_path}/runs"))
        return caught.value.problems

    for name, content, message in (
        ("config.json", "[]", "config.json: must be a JSON object"),
        ("preprocessing.json", "{", "Expecting property name"),
        ("preprocessing.json", "{}", "'normalize'"),
    ):
        kept = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(content, encoding="utf-8")
        (line,) = problems()
        assert line.startswith(f"teachers.t.from: {folder} cannot be read: ") and message in line
        (folder / name).write_text(kept, encoding="utf-8")


TAGGING = """
name: tags1
output_dir: {root}/runs
data: {{task: tagging, train: {root}/train.bmes, max_length: 32}}
teachers: [{{name: cnn, model: {{type: idcnn, embedding: 8, filters: 8, blocks: 1}}, epochs: 1}}]
"""


def test_a_tagger_is_taken_as_it_is(tmp_path: Path, world: World) -> None:
    made = random.Random(3)
    sentences = [
        "".join(f"{made.choice('我去了在')} O\n" for _ in range(made.randint(1, 5))) + "北 B-LOC\n京 E-LOC\n"
        for _ in range(40)
    ]
    (tmp_path / "train.bmes").write_text("\n".join(sentences), encoding="utf-8")
    (tmp_path / "r.yaml").write_text(TAGGING.format(root=tmp_path), encoding="utf-8")
    first = load_recipe(str(tmp_path / "r.yaml"))
    for stage in (prepare, finetune):
        stage.run(first, world, Plan(first).folder)
    source = Plan(first).folder.model("teachers", "cnn")
    changes = ["name=tags2", "data.vocabulary.min_count=30", f"teachers=[{{name: big, from: {source}}}]"]
    second = load_recipe(
        str(tmp_path / "r.yaml"), [*changes, "students=[{name: s, model: {type: idcnn, embedding: 4, filters: 4}}]"]
    )
    check_inputs(second)
    plan = Plan(second)
    for stage in (prepare, finetune, precompute):
        stage.run(second, world, plan.folder)
    data = PreparedData.open(plan.folder)
    part = data.part("train", "big")
    np.testing.assert_array_equal(part.tokens, PreparedData.open(Plan(first).folder).part("train", "students").tokens)
    assert data.vocabulary("students") < data.vocabulary("big")
    same = [read_json(place / "metrics.json")["f1"] for place in (source, plan.folder.model("teachers", "big"))]
    assert same[0] == same[1]
    marginals, mask = StoreReader.open(plan.folder.knowledge("big")).ragged("marginals", part.ids[:4])
    assert mask.sum(1).tolist() == part.characters[:4].tolist() and torch.isfinite(marginals[mask]).all()
    with pytest.raises(InputError, match=r"has the labels O, B-LOC, .* \(allowed: those of data, O, B-PER"):
        check_inputs(load_recipe(str(tmp_path / "r.yaml"), [*changes, "data.labels=[PER, LOC]"]))

"""Losses, weightings and the students they are for, as a recipe gives them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dtrain import models
from dtrain.errors import InputError
from dtrain.knowledge.collect import model_options, pick
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Teacher
from dtrain.tasks.classification.task import Classification


def load(folder: Path, student: str, teachers: str = "[a, b]", data: str = "train: x.jsonl") -> Recipe:
    path = folder / "r.yaml"
    names = teachers.strip("[]").split(", ")
    listed = ", ".join(f"{{name: {name}, model: {{type: textcnn}}}}" for name in names)
    path.write_text(f"name: r\ndata: {{{data}}}\nteachers: [{listed}]\nstudents:\n  - {{name: s, {student}}}\n")
    recipe = load_recipe(str(path))
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    return recipe


CNN = "model: {type: textcnn}"


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        ("type: soft_targets, weighting: entropy", ["logits"]),
        ("type: feature_hint", ["features"]),
        ("type: feature_hint, weighting: gradient", ["features"]),
        ("type: feature_hint, weighting: confidence", ["logits", "features"]),
        ("type: soft_targets, weighting: {type: fixed, weights: {a: 1, b: 2}}", ["logits"]),
        ("type: soft_targets, teachers: [b], weighting: {type: fixed, weights: {b: 2}}", ["logits"]),
        ("type: soft_targets, weighting: {type: gradient, limit: 0.5}", ["logits"]),
        ("type: teacher_annealing, until: 0.5", ["logits"]),
    ],
)
def test_what_is_read_is_stored(loss: str, outputs: list[str], tmp_path: Path) -> None:
    assert load(tmp_path, f"{CNN}, losses: [{{{loss}}}]").knowledge.outputs == outputs


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("losses: [{type: soft_targets, weighting: {type: fixed, weights: {a: 1}}}]",
         r"r\.yaml:5: students\.0\.losses\.0 \(soft_targets\)\.weighting\.weights: must name its teachers, found a "),
        ("losses: [{type: soft_targets, weighting: {type: gradient, limit: 0.4}}]",
         r"limit: 0\.4 x 2 teachers is under 1"),
        ("losses: [{type: cross_entropy, weighting: average}]", r"\(cross_entropy\): takes no teachers"),
        ("losses: [{type: soft_targets, weighting: {typ: average}}]", r"weighting\.typ: unknown key; did you mean 'type'"),
        ("losses: [{type: soft_targets, weight: {start: 1, unitl: 0.5}}]", r"unknown key; did you mean 'until'"),
        ("losses: [{type: soft_targets, weight: -1}]", r"losses\.0\.weight: .*greater than or equal to 0, found -1"),
        ("losses: [{type: exits_cross_entropy}]", r"exits_cross_entropy is for model type multi_exit"),
        ("noisy: {confidence: 0.5}", r"noisy: needs teachers, rows with transfer"),
        ("losses: [{type: soft_targets, weight: {start: 1, until: 0.5}}]",
         r"r\.yaml:5: students\.0\.losses: every weight is 0 at 0\.5 of training"),
        ("losses: [{type: soft_targets, weight: {start: 1, until: 0.5}}, {type: cosine, weight: {start: 2, until: 0.7}}]",
         r"every weight is 0 at 0\.7 of training"),
        ("losses: [{type: cross_entropy, weight: {start: 0, end: 1}}]", r"every weight is 0 at the beginning"),
        ("losses: [{type: cross_entropy, weight: {start: 0, end: 1}}, {type: soft_targets, weight: 0}]",
         r"every weight is 0 at the beginning"),
        ("losses: [{type: feature_hint}], parallel: data", r"at the beginning only features have a weight"),
        ("losses: [{type: feature_hint}, {type: soft_targets, weight: {start: 1, until: 0.5}}], parallel: data",
         r"at 0\.5 of training only features have a weight"),
    ],
)  # fmt: skip
def test_what_is_refused(student: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, f"{CNN}, {student}")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("{type: cross_entropy}, {type: soft_targets, weight: 0}", r"every weight of losses that transfer rows have is 0$"),
        ("{type: cross_entropy}, {type: soft_targets, weight: {start: 1, until: 0.5}}",
         r"every weight of losses that transfer rows have is 0 at 0\.5 of training"),
        ("{type: teacher_annealing, until: 0.5}", r"that transfer rows have is 0 at 0\.5 of training"),
    ],
)  # fmt: skip
def test_rows_without_labels_need_what_they_have(losses: str, message: str, tmp_path: Path) -> None:
    data = "train: x.jsonl, transfer: y.txt"
    with pytest.raises(InputError, match=message):
        load(tmp_path, f"{CNN}, rows: [transfer], losses: [{losses}]", data=data)
    with pytest.raises(InputError) as refused:
        load(tmp_path, f"{CNN}, rows: [transfer], losses: [{{type: cross_entropy}}]", data=data)
    assert len(refused.value.problems) == 1  # that transfer rows have no labels
    load(tmp_path, f"{CNN}, losses: [{losses}]", data=data)
    load(tmp_path, f"{CNN}, rows: [transfer], losses: [{losses}, {{type: cosine}}]", data=data)


@pytest.mark.parametrize(
    "losses",
    [
        "{type: soft_targets, weight: {start: 1, end: 0}}",  # 0 is reached behind the last step
        "{type: soft_targets, weight: {start: 1, until: 0.5}}, {type: cross_entropy, weight: {start: 0, end: 1}}",
        "{type: cross_entropy, weight: {start: 0, end: 1, shape: step, until: 0.5}}, "
        "{type: soft_targets, weight: {start: 1, until: 0.5}}",
        "{type: feature_hint, weight: {start: 1, until: 0.5}}, {type: cross_entropy, weight: {start: 0, end: 1}}",
    ],
)
def test_weights_that_follow_each_other(losses: str, tmp_path: Path) -> None:
    terms = load(tmp_path, f"{CNN}, losses: [{losses}]").students[0].losses or []
    for step in range(1000):  # brute force: no moment without a weight
        progress = step / 1000
        assert any(t.weight if isinstance(t.weight, float) else t.weight.at(progress) for t in terms)


def test_noise_is_not_for_adversarial_training(tmp_path: Path) -> None:
    data = "train: x.jsonl, transfer: y.txt"
    with pytest.raises(InputError, match=r"students\.0\.adversarial: not together with noisy\.token_noise"):
        load(tmp_path, f"{CNN}, noisy: {{}}, adversarial: {{type: fgm}}", data=data)
    load(tmp_path, f"{CNN}, noisy: {{token_noise: 0}}, adversarial: {{type: fgm}}", data=data)


def test_hints_are_of_one_width(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"losses\.1 \(feature_hint\): s has 96 features and its teacher a 768; hints"):
        load(tmp_path, "model: {type: textcnn, filters: 32}, losses: [{type: cross_entropy}, {type: feature_hint}]")
    with pytest.raises(InputError, match=r"\(feature_cosine\): s has 100 features and its teacher b 768"):
        load(tmp_path, "model: {type: bilstm, hidden: 50}, losses: [{type: feature_cosine, teachers: [b]}]")
    load(tmp_path, "model: {type: bilstm, hidden: 384}, losses: [{type: feature_hint}]")
    load(tmp_path, "model: {type: textcnn, filters: 384, widths: [1, 3]}, losses: [{type: feature_hint}]")


@pytest.mark.parametrize(
    "model",
    [
        {"type": "textcnn", "embedding": 4, "filters": 5, "widths": [1, 2]},
        {"type": "bert_cnn", "encoder": {"type": "bert", "size": "tiny"}, "filters": 5, "widths": [1, 2, 3]},
        {"type": "text_rcnn", "embedding": 4, "hidden": 3, "features": 7},
        {"type": "bilstm", "embedding": 4, "hidden": 3},
        {"type": "siamese", "embedding": 4, "hidden": 3},
        {"type": "fasttext", "embedding": 4, "buckets": 16},
        {"type": "bert", "size": "tiny"},
        {"type": "multi_exit", "encoder": {"type": "bert", "size": "tiny"}, "exits": [1]},
    ],
    ids=lambda model: model["type"],
)
def test_width_of_features(model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_tokenizer", lambda path: SimpleNamespace(sep_token_id=3))
    spec = Teacher.model_validate({"name": "t", "model": model}).model
    built = models.build(spec, vocabulary=9, labels=["a", "b"], pad_id=0, max_length=8).eval()
    tokens = torch.tensor([[5, 6, 3, 7]])
    output = built(input_ids=tokens, attention_mask=torch.ones_like(tokens), **model_options(built, ["features"]))
    assert spec.feature_width == pick("features", output).shape[-1]
    pretrained = Teacher.model_validate({"name": "t", "model": {"type": "bert", "pretrained": "x"}}).model
    assert pretrained.feature_width is None


def test_weightings_of_taggers(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = (
        "name: r\ndata: {task: tagging, train: x.bmes}\nteachers: [{name: a, model: {type: tagger}}]\n"
        "students: [{name: s, model: {type: idcnn}, losses: [{type: marginal_matching, weighting: average}]}]\n"
    )
    path.write_text(text)
    load_recipe(str(path))
    path.write_text(text.replace("average", "confidence"))
    with pytest.raises(InputError, match=r"'confidence' is not for task 'tagging' \(allowed: average, fixed\)"):
        load_recipe(str(path))


def test_students_with_needs_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'siamese' reads pairs, and data.task is 'classification'"):
        load(tmp_path, "model: {type: siamese}")
    load(tmp_path, "model: {type: siamese}", data="task: pairs, train: x.jsonl, columns: {text_b: b}")
    exits = "model: {type: multi_exit, encoder: {type: bert, size: tiny}, exits: [1]}"
    losses = load(tmp_path, exits).students[0].losses
    assert [loss.type for loss in losses or []] == ["exits_cross_entropy", "exits_distillation", "soft_targets"]
    with pytest.raises(InputError, match="every exit needs a loss: exits_cross_entropy or exits_distillation"):
        load(tmp_path, f"{exits}, losses: [{{type: soft_targets}}]")
    with pytest.raises(InputError, match=r"model\.exits: 3 is more than the 2 layers of the encoder"):
        load(tmp_path, exits.replace("[1]", "[1, 3]"))
    fading = "losses: [{type: exits_cross_entropy, weight: {start: 1, until: 0.5}}, {type: soft_targets}]"
    load(tmp_path, f"{exits}, {fading}")
    with pytest.raises(InputError, match=r"at 0\.5 of training no loss of exits has a weight, and with parallel: data"):
        load(tmp_path, f"{exits}, {fading}, parallel: data")


def test_teachers_that_are_tolerant_or_have_exits() -> None:
    task = Classification(["a", "b"], [])
    plain = {"name": "t", "model": {"type": "textcnn"}, "label_smoothing": 0.1}
    tolerant = Teacher.model_validate(plain | {"tolerance": {"weight": 0.3, "k": 4}})
    terms = task.teacher_losses(tolerant)
    assert [(term.type, term.weight, term.parameters()) for term in terms] == [
        ("cross_entropy", 1.0, {"label_smoothing": 0.1, "class_weights": None}),
        ("top_gap", 0.3, {"k": 4}),
    ]
    exits = {"type": "multi_exit", "encoder": {"type": "bert", "size": "tiny"}, "exits": [1]}
    terms = task.teacher_losses(Teacher.model_validate(plain | {"model": exits}))
    assert [term.type for term in terms] == ["exits_cross_entropy", "exits_distillation"]


def test_an_early_stop_is_within_the_epochs() -> None:
    plain = {"name": "t", "model": {"type": "textcnn"}, "epochs": 3}
    with pytest.raises(ValueError, match="stop_epoch: 4 is more than the 3 epochs"):
        Teacher.model_validate(plain | {"stop_epoch": 4})
    with pytest.raises(ValueError, match="stop_epoch: not together with patience"):
        Teacher.model_validate(plain | {"stop_epoch": 2, "patience": 1})

"""Students that are initialised with their teacher's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dtrain.data.encoders import check_encoders
from dtrain.errors import InputError
from dtrain.models import build
from dtrain.models.initial import copy_layers
from dtrain.models.inside import trunk_of
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.recipe.initial import InitSpec
from dtrain.recipe.models import architectures
from dtrain.recipe.schema import Recipe


def model_of(type: str, vocabulary: int = 30, **more: Any) -> torch.nn.Module:
    shape = {"hidden": 16, "layers": 4, "heads": 2} if type in ("bert", "nezha") else {}
    spec = architectures()[type].model_validate({"type": type, **shape, **more})
    return build(spec, vocabulary=vocabulary, labels=["a", "b"], pad_id=0)


def init(**values: Any) -> InitSpec:
    return InitSpec.model_validate({"from": "t", **values})


@pytest.mark.parametrize("type", ["bert", "nezha"])
@pytest.mark.parametrize("pooler", [True, False])
def test_what_is_copied(type: str, pooler: bool) -> None:
    teacher, student = (
        model_of(type, vocabulary=40),
        model_of(type, layers=2),
    )  # as in pretrained models, embeddings beyond the number of tokens
    classifier = student.classifier.weight.clone()  # type: ignore[union-attr, operator]
    copy_layers(student, teacher, init(layers=[3, 1], pooler=pooler), "model")
    own, theirs = trunk_of(student), trunk_of(teacher)
    for name, parameter in own.embeddings.named_parameters():
        assert torch.equal(parameter, theirs.embeddings.get_parameter(name)[: len(parameter)])
    for layer, source in ((0, 3), (1, 1)):
        for name, parameter in own.encoder.layer[layer].named_parameters():
            assert torch.equal(parameter, theirs.encoder.layer[source].get_parameter(name))
    assert torch.equal(own.pooler.dense.weight, theirs.pooler.dense.weight) == pooler
    assert torch.equal(student.classifier.weight, classifier)  # type: ignore[union-attr, arg-type]


def test_all_layers_answer_as_the_teacher() -> None:
    teacher = model_of("nezha", layers=4).eval()
    student = model_of("bert_cnn", encoder={"type": "nezha", "hidden": 16, "layers": 4, "heads": 2}, filters=2).eval()
    copy_layers(student, teacher, init(every=1), "model.encoder")
    ids = torch.tensor([[3, 4, 5, 6]])
    mask = torch.ones_like(ids)
    assert torch.equal(
        trunk_of(student)(input_ids=ids, attention_mask=mask).last_hidden_state,
        trunk_of(teacher)(input_ids=ids, attention_mask=mask).last_hidden_state,
    )


def test_every_kth_layer_from_the_first() -> None:
    assert init(every=2).chosen(12) == [0, 2, 4, 6, 8, 10] and init(every=3).chosen(4) == [0, 3]
    assert init(layers=[0, 2, 4, 7, 9, 11]).chosen(12) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize(
    ("student", "values", "message"),
    [
        ({"layers": 2}, {"layers": [1, 4]}, r"s\.model\.init\.layers: t has no layer 4 \(there are 0 to 3\)"),
        (
            {"layers": 3},
            {"every": 2},
            r"s\.model\.init: 2 layers are copied from t, and the model has 3 \(write layers: 2",
        ),
        ({"layers": 2, "hidden": 8}, {"every": 2}, r"s\.model\.hidden: 8 is not that of t, .*\(write hidden: 16\)"),
        ({"layers": 2, "heads": 4}, {"every": 2}, r"s\.model\.heads: 4 is not that of t"),
        ({"layers": 2, "intermediate": 9}, {"every": 2}, r"s\.model\.intermediate: 9 .*\(write intermediate: 64\)"),
    ],
)
def test_weights_that_do_not_fit(student: dict[str, Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        copy_layers(model_of("bert", **student), model_of("bert"), init(**values), "s.model")


TEACHER = "{type: bert, hidden: 16, layers: 4, heads: 2}"


def load(folder: Path, model: str, teacher: str = TEACHER) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(
        f"name: r\ndata: {{train: x.jsonl}}\nteachers:\n  - {{name: t, model: {teacher}}}\n"
        f"  - {{name: lstm, model: {{type: bilstm}}}}\nstudents:\n  - {{name: s, teachers: [], model: {model}}}\n"
    )
    recipe = load_recipe(str(path))
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    return recipe


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{type: bert, hidden: 16, heads: 2, layers: 2, tokenizer: t, init: {from: t}}", r"layers and every: give one"),
        ("{type: bert, hidden: 16, heads: 2, layers: 2, tokenizer: t, init: {from: u, every: 2}}",
         r"students\.0\.model\.init\.from: no teacher 'u'.* \(allowed: t, lstm\)"),
        ("{type: bert, hidden: 16, heads: 2, layers: 2, tokenizer: t, init: {from: lstm, every: 2}}", r"lstm is a bilstm"),
        ("{type: bert, hidden: 16, heads: 2, layers: 2, init: {from: t, every: 2}}", r"model\.tokenizer: .*write tokenizer: t"),
        ("{type: nezha, hidden: 16, heads: 2, layers: 2, tokenizer: t, init: {from: t, every: 2}}",
         r"model\.init: is a nezha, and t a bert: layers are copied between models of one type"),
        ("{type: bert, hidden: 32, heads: 2, layers: 2, tokenizer: t, init: {from: t, every: 2}}",
         r"r\.yaml:7: students\.0\.model\.hidden: 32 is not that of t, .*\(write hidden: 16\)"),
        ("{type: bert_cnn, encoder: {type: bert, hidden: 16, heads: 2, tokenizer: t, init: {from: t, every: 2}}}",
         r"model\.encoder\.init: 2 layers are copied from t, and the model has 4"),
        ("{type: bert, pretrained: x, init: {from: t, every: 2}}", r"pretrained and init exclude each other"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_begin_with(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, model)


def test_teachers_begin_with_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teachers\.0\.model\.init: is for students"):
        load(tmp_path, "{type: bilstm}", "{type: bert, tokenizer: t, init: {from: t, every: 2}}")


def test_shapes_of_folders_are_known_to_check(tmp_path: Path) -> None:
    """The number of layers is read from the config.json of a pretrained teacher, for losses, too."""
    folder = tmp_path / "bert"
    folder.mkdir()
    config = model_of("bert").config.to_json_string()  # type: ignore[union-attr, operator]
    (folder / "config.json").write_text(config)
    model = "{type: bert, hidden: 32, heads: 2, layers: 2, tokenizer: t, init: {from: t, every: 2}}"
    recipe = load(tmp_path, model, f"{{type: bert, pretrained: {folder}}}")
    assert check_encoders(recipe) == [
        "students.s.model.hidden: 32 is not that of t, whose weights init copies (write hidden: 16)"
    ]
    path = tmp_path / "r.yaml"
    overrides = ["students.s.losses=[{type: hidden_mse, layers: [[1, 5]]}]", "students.s.teachers=[t]"]
    overrides += ["students.s.model={type: bert, size: tiny, tokenizer: t}"]
    found = check_encoders(load_recipe(str(path), overrides))
    assert found == ["students.s.losses (hidden_mse).layers: the teacher has no layer 5 for it (there are 0 to 4)"]

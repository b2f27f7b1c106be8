"""Stored or online answers, and losses between the layers of transformers: what a recipe may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import dump_recipe, load_recipe
from dtrain.recipe.schema import Recipe

BERT = "{type: bert, hidden: 16, layers: 2, heads: 4, tokenizer: t}"
HIDDEN = "losses: [{type: hidden_mse, teachers: [t]}, {type: soft_targets}]"


def load(folder: Path, student: str, task: str = "classification", more: str = "") -> Recipe:
    path = folder / "r.yaml"
    wrap = "{type: tagger, encoder: %s}" if task == "tagging" else "%s"
    encoder = wrap % "{type: nezha, hidden: 32, layers: 4, heads: 4}"
    bert = wrap % BERT
    teachers = [
        f"{{name: t, model: {encoder}}}",
        f"{{name: other, model: {encoder}}}",
        "{name: lstm, model: {type: bilstm}}",
        "{name: early, model: {type: multi_exit, exits: [1], confidence: 0.9, encoder: {type: bert, tokenizer: t}}}",
    ][: 2 if task == "tagging" else None]
    path.write_text(
        f"name: r\ndata: {{train: x.jsonl, task: {task}}}\nteachers: [{', '.join(teachers)}]\n{more}\n"
        f"students:\n  - {{name: s, {student.replace('BERT', bert)}}}\n"
    )
    recipe = load_recipe(str(path))
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    return recipe


def test_what_is_too_big_is_online_and_the_rest_stored(tmp_path: Path) -> None:
    recipe = load(tmp_path, f"model: BERT, teachers: [t], {HIDDEN}")
    (student,) = recipe.students
    assert student.asks == ({"t": ["logits"]}, {"t": ["hidden_states"]})
    assert recipe.knowledge.outputs == ["logits"] and Plan(recipe).needed_teachers() == ["t"]


def test_a_teacher_that_only_answers_beside_students_has_no_store(tmp_path: Path) -> None:
    recipe = load(tmp_path, f"model: BERT, teachers: [t, other], answers: online, {HIDDEN}".replace("other], ", "t], "))
    assert recipe.students[0].asks == ({}, {"t": ["hidden_states", "logits"]})
    assert Plan(recipe).needed_teachers() == []
    recipe = load(tmp_path, "model: BERT, teachers: [t, lstm], losses: [{type: hidden_mse, teachers: [t]}]")
    assert recipe.students[0].asks == (
        {"lstm": []},
        {"t": ["hidden_states"]},
    )  # as ever: whom a student names is stored
    assert load(tmp_path, "model: {type: bilstm}, teachers: [t]").students[0].asks == ({"t": ["logits"]}, {})


def test_taggers_compare_layers_too(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "model: BERT, teachers: [t], losses: [{type: hidden_mse}, {type: tag_likelihood}]", "tagging"
    )
    assert recipe.students[0].asks.online == {"t": ["hidden_states"]}


def test_with_all_ranks_every_step_reaches_the_crf(tmp_path: Path) -> None:
    hidden = "model: BERT, teachers: [t], parallel: data, losses: [{type: hidden_mse}"
    with pytest.raises(InputError, match=r"students\.0\.losses: with parallel: data every step must reach the CRF"):
        load(tmp_path, f"{hidden}]", "tagging")
    load(tmp_path, f"{hidden}, {{type: tag_likelihood}}]", "tagging")
    load(tmp_path, "model: BERT, teachers: [t], losses: [{type: hidden_mse}]", "tagging")


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (f"model: {{type: bert, size: tiny}}, teachers: [t], {HIDDEN}",
         r"r\.yaml:6: students\.0\.model: reads other tokens than t, .*; write model\.tokenizer: t$"),
        (f"model: {{type: bert_cnn, encoder: {{type: bert}}}}, teachers: [t], {HIDDEN}", r"write model\.encoder\.tokenizer: t$"),
        (f"model: {{type: bert, pretrained: x}}, teachers: [t], {HIDDEN}", r"a pretrained model brings its own"),
        (f"model: {{type: bilstm}}, teachers: [t], {HIDDEN}",
         r"losses\.0 \(hidden_mse\): compares layers of transformers, and s is a bilstm, which has none"),
        ("model: {type: bilstm}, teachers: [t], answers: online", r"take away `answers`, and its stored outputs are read"),
        ("model: BERT, teachers: [t, other], losses: [{type: hidden_mse}]",
         r"losses\.0 \(hidden_mse\)\.teachers: compares with the layers of one teacher, found t, other; name it"),
        ("model: BERT, losses: [{type: hidden_mse, teachers: [lstm]}]", r"teachers: .* and lstm is a bilstm, without any"),
        ("model: BERT, losses: [{type: hidden_mse, teachers: [early]}]", r"early has no states of rows that leave it early"),
        ("model: BERT, losses: [{type: hidden_mse, teachers: [t], weighting: average}]", r"weighting: is not for losses on"),
        ("model: BERT, teachers: [t], losses: [{type: hidden_mse, layers: [[1, 5]]}]",
         r"losses\.0 \(hidden_mse\)\.layers: the teacher has no layer 5 for it \(there are 0 to 4\)"),
        ("model: BERT, teachers: [t], losses: [{type: hidden_mse, layers: [[3, 4]]}]", r"the student has no layer 3"),
        (f"model: BERT, teachers: [t], answers: stored, {HIDDEN}",
         r"answers: 'stored' has no hidden_states for hidden_mse, which no store holds \(allowed: auto, online\)"),
        ("model: BERT, teachers: [t], answers: never", r"answers: "),
        (f"model: {{type: bert}}, teachers: [t], phases: [{{name: one, {HIDDEN}}}]", r"students\.0\.model: reads other tokens"),
        ("model: BERT, teachers: [t], phases: [{name: one, losses: [{type: hidden_mse, layers: [[1, 5]]}]}]",
         r"phases\.0 \(one\)\.losses\.0 \(hidden_mse\)\.layers: the teacher has no layer 5"),
        ("model: BERT, teachers: [], losses: [{type: hidden_mse}]", r"needs a teacher, and the student has none"),
    ],
)  # fmt: skip
def test_what_is_refused(student: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        load(tmp_path, student)
    assert len(raised.value.problems) == 1
    assert raised.match(message)


def test_a_sharded_teacher_answers_students_of_all_ranks_only(tmp_path: Path) -> None:
    more = "knowledge: {sharded: true}"
    with pytest.raises(InputError, match=r"students\.0\.parallel: t answers beside it, and knowledge\.sharded"):
        load(tmp_path, f"model: BERT, teachers: [t], {HIDDEN}", more=more)
    load(tmp_path, f"model: BERT, teachers: [t], parallel: data, {HIDDEN}", more=more)

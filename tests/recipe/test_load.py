"""Recipes: overrides, grids, defaults that depend on other sections, and the resolved recipe as a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.errors import InputError
from dtrain.recipe import dump_recipe, load_recipe, shipped_recipes

TEXT = """\
name: t
seed: 12
data: {train: train.jsonl, transfer: more.txt}
teachers:
  - name: cnn
    model: {type: textcnn}
    grid: {seed: [1, 2, 3]}
students:
  - name: lstm
    model: {type: bilstm}
    grid: {optimizer.lr: [1e-4, 3.0e-4], seed: [1, 2]}
  - name: scratch
    model: {type: bilstm}
    teachers: []
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "t.yaml"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


def test_grid_multiplies_members_and_names_them(path: str) -> None:
    recipe = load_recipe(path)
    assert [s.name for s in recipe.students] == [
        "lstm-lr0.0001-seed1", "lstm-lr0.0001-seed2", "lstm-lr0.0003-seed1", "lstm-lr0.0003-seed2", "scratch",
    ]  # fmt: skip
    assert [(s.optimizer.lr, s.seed) for s in recipe.students[:4]] == [(1e-4, 1), (1e-4, 2), (3e-4, 1), (3e-4, 2)]
    assert recipe.students[4].seed == 12


def test_defaults_follow_teachers_and_transfer(path: str) -> None:
    recipe = load_recipe(path)
    lstm, scratch = recipe.students[0], recipe.students[4]
    assert lstm.teachers == ["cnn-seed1", "cnn-seed2", "cnn-seed3"]
    assert lstm.rows == ["train", "transfer"]
    assert [loss.type for loss in lstm.losses or []] == ["cross_entropy", "soft_targets"]
    assert scratch.teachers == []
    assert scratch.rows == ["train"]
    assert [loss.type for loss in scratch.losses or []] == ["cross_entropy"]


def test_a_teacher_of_a_grid_is_also_known_by_its_first_name(path: str) -> None:
    assert load_recipe(path, ["students.1.teachers=[cnn]", "students.1.losses=[{type: soft_targets}]"]).students[
        -1
    ].teachers == ["cnn-seed1", "cnn-seed2", "cnn-seed3"]
    assert load_recipe(path, ["students.0.teachers=['*seed[12]']"]).students[0].teachers == ["cnn-seed1", "cnn-seed2"]


def test_overrides_by_number_by_name_and_inside_a_grid(path: str) -> None:
    overrides = [
        "students.lstm.epochs=7",
        "teachers.0.optimizer.lr=1e-2",
        "students.0.grid.optimizer.lr=[1.0]",
        "seed=3",
    ]
    recipe = load_recipe(path, overrides)
    assert recipe.students[0].epochs == 7
    assert recipe.teachers[2].optimizer.lr == 0.01
    assert [s.optimizer.lr for s in recipe.students[:2]] == [1.0, 1.0]
    assert recipe.students[-1].seed == 3


def test_an_override_of_every_member_of_a_list(path: str) -> None:
    recipe = load_recipe(path, ["students.*.epochs=7", "students.lstm.epochs=8"])
    assert [student.epochs for student in recipe.students] == [8] * 4 + [7]
    assert {teacher.epochs for teacher in recipe.teachers} == {3}
    both = ["students.0.losses=[{type: cross_entropy}, {type: soft_targets}]", "students.0.losses.*.weight=0.25"]
    assert [loss.weight for loss in load_recipe(path, both).students[0].losses or []] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("students.*.epoch=7", r"^override 'students\.\*\.epoch=7': students\.0\.epoch: .*did you mean 'epochs'"),
        ("data.*.train=a", r"^override 'data\.\*\.train=a': `\*` stands for each member of a list, and data is none$"),
        ("students.nobody.losses.*.weight=1", r"students\.nobody\.losses is none$"),
        ("*.epochs=1", r"`\*` stands for each member of a list"),
    ],
)
def test_an_override_of_every_member_that_fits_none(path: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(path, [override])


def test_the_resolved_recipe_is_a_recipe_and_equal(path: str, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(again)) == recipe


def test_loss_parameters_are_numbers_after_loading(path: str) -> None:
    recipe = load_recipe(path, ["students.0.losses=[{type: soft_targets, temperature: '1e1'}]"])
    assert recipe.students[0].losses is not None
    assert recipe.students[0].losses[0].parameters() == {"temperature": 10.0}


def test_every_problem_is_reported_at_once(path: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(path, ["seed=-1", "students.0.epochs=0", "teachers.0.modle=1"])
    assert len(caught.value.problems) == 3


def test_a_problem_names_the_line_of_its_key(path: str) -> None:
    Path(path).write_text(TEXT.replace("model: {type: textcnn}", "model: {type: textcn}"), encoding="utf-8")
    with pytest.raises(InputError, match=r"t\.yaml:6: teachers\.0\.model\.type: .*did you mean 'textcnn'"):
        load_recipe(path)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid_and_described(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert shipped_recipes()[name].read_text(encoding="utf-8").startswith("# ")

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


def test_a_name_stands_for_no_longer_name(path: str, tmp_path: Path) -> None:
    """A pattern that is resolved to one name means the same when the resolved recipe is read again."""
    teachers = "teachers=[{name: cnn, model: {type: textcnn}}, {name: cnn-wide, model: {type: textcnn}}]"
    losses = "students.1.losses=[{type: soft_targets}]"
    for asked in ("cnn", "cn?"):
        recipe = load_recipe(path, [teachers, losses, f"students.1.teachers=['{asked}']"])
        assert recipe.students[-1].teachers == ["cnn"]
        again = tmp_path / "again.yaml"
        again.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(str(again)) == recipe


def test_the_name_of_a_grid_stands_for_no_other_teacher(path: str) -> None:
    """A teacher may have a name that begins with another's and a dash, where that other has a grid or a sample."""
    teachers = [
        "teachers=[{name: cnn, model: {type: textcnn}, grid: {seed: [1, 2]}},"
        "{name: cnn-wide, model: {type: textcnn}, grid: {seed: [3]}}, {name: cnn-deep, model: {type: textcnn}}]"
    ]
    for asked, found in (
        ("[cnn]", ["cnn-seed1", "cnn-seed2"]),
        ("[cnn-wide]", ["cnn-wide-seed3"]),
        ("[cnn-deep, cnn]", ["cnn-deep", "cnn-seed1", "cnn-seed2"]),
        ("['cnn-*']", ["cnn-seed1", "cnn-seed2", "cnn-wide-seed3", "cnn-deep"]),
    ):
        of_student = [f"students.1.teachers={asked}", "students.1.losses=[{type: soft_targets}]"]
        assert load_recipe(path, teachers + of_student).students[-1].teachers == found
        of_loss = ["students.1.teachers=['*']", f"students.1.losses=[{{type: soft_targets, teachers: {asked}}}]"]
        (loss,) = load_recipe(path, teachers + of_loss).students[-1].losses or []
        assert loss.teachers == found
    with pytest.raises(InputError, match="no teacher 'cnn-w'"):
        load_recipe(path, [*teachers, "students.1.teachers=[cnn-w]", "students.1.losses=[{type: soft_targets}]"])


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


def test_only_what_is_allowed_is_suggested(path: str) -> None:
    """An encoder of a tagger may not be what a student may: `did you mean 'bilstm'?` was said of 'bilstm'."""
    change = "students.0.model={type: tagger, encoder: {type: bilstm}}"
    with pytest.raises(InputError, match=r"encoder\.type: allowed: 'bert', 'nezha', found 'bilstm'$"):
        load_recipe(path, ["data.task=tagging", change])


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid_and_described(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert shipped_recipes()[name].read_text(encoding="utf-8").startswith("# ")


def test_a_grid_over_the_types_of_a_loss(path: str) -> None:
    """What one type takes is not asked of the others; each has its own defaults in the end."""
    types = ["soft_targets", "reverse_soft_targets", "cosine", "logit_regression"]
    grid = f"students.0.grid={{losses.1.type: [{', '.join(types)}]}}"
    losses = "students.0.losses=[{type: cross_entropy, label_smoothing: 0.1}, {type: soft_targets}]"
    recipe = load_recipe(path, [grid, losses])
    found = [student.losses[1] for student in recipe.students[:4] if student.losses]
    assert [loss.type for loss in found] == types
    assert [loss.model_extra for loss in found] == [{"temperature": 2.0}, {"temperature": 2.0}, {}, {}]
    with pytest.raises(InputError, match=r"\(member 2\): losses\.1\.temperature: unknown key"):
        load_recipe(path, [grid, losses.replace("type: soft_targets", "type: soft_targets, temperature: 3")])


def test_keys_that_are_called_like_a_model_are_keys(path: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(
            path, ["data.augment={tagger: foo}", "students.0.optimizer.modules={list: 0, float: x, encoder: 1}"]
        )
    for told in (
        "data.augment.tagger: allowed: 'jieba' or 'nltk', found 'foo'",
        "students.0.optimizer.modules.list: input should be greater than 0, found 0",
        "students.0.optimizer.modules.float: input should be a valid number, unable to parse string as a number, found 'x'",
    ):
        assert any(problem.endswith(f"': {told}") for problem in caught.value.problems), told


def test_a_grid_names_the_key_that_is_wrong(path: str) -> None:
    with pytest.raises(InputError, match=r"teachers\.0\.grid \(member 2\): stop_epoch: 9 is more than"):
        load_recipe(path, ["teachers.0.grid={stop_epoch: [1, 2, 9]}"])


def test_a_tagger_with_nothing_to_learn_is_told(path: str) -> None:
    """The likelihood needs tags, which transfer rows lack, and the other term has no weight."""
    text = Path(path).read_text(encoding="utf-8").replace("{train: train.jsonl,", "{task: tagging, train: train.jsonl,")
    text = text.replace("type: textcnn", "type: idcnn").replace("type: bilstm", "type: idcnn")
    Path(path).write_text(text, encoding="utf-8")
    losses = "students.0.losses=[{type: tag_likelihood}, {type: marginal_matching, weight: 0}]"
    with pytest.raises(InputError, match=r"every weight of losses that transfer rows have is 0"):
        load_recipe(path, [losses, "students.0.rows=[transfer]"])


@pytest.mark.parametrize("rows", ["rows", "phases"])
def test_rows_are_named_once(path: str, rows: str) -> None:
    """Twice the transfer rows would pass for rows with labels."""
    key = {
        "rows": "students.0.rows=[transfer, transfer]",
        "phases": "students.0.phases=[{name: a, rows: [train, train]}]",
    }
    told = {"rows": r"students\.0\.rows: 'transfer'", "phases": r"students\.0\.phases\.0\.rows: 'train'"}
    with pytest.raises(InputError, match=f"{told[rows]} is named twice"):
        load_recipe(path, [key[rows]])


def test_a_limit_is_no_matter_for_one_teacher(path: str) -> None:
    one = "{type: soft_targets, teachers: [cnn-seed1], weighting: {type: gradient, limit: 0.3}}"
    load_recipe(path, [f"students.0.losses=[{one}]"])
    with pytest.raises(InputError, match=r"0\.3 x 3 teachers is under 1"):
        load_recipe(path, [f"students.0.losses=[{one.replace('teachers: [cnn-seed1], ', '')}]"])

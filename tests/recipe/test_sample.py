"""`sample`: members with drawn settings, and what a sampler learns from an earlier run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe.load import dump_recipe
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder, write_json

KEYS = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.5},
    "model.filters": {"low": 4, "high": 64},
    "model.embedding": [16, 32],
}


def load(folder: Path, sample: dict[str, Any] | None, overrides: list[str] | None = None, **more: Any) -> Recipe:
    student = {"name": "cnn", "model": {"type": "textcnn"}, **({"sample": sample} if sample else {}), **more}
    recipe = {"name": "r", "output_dir": str(folder), "data": {"train": str(folder / "t.jsonl")}, "students": [student]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "t.jsonl").write_text('{"text": "abc", "label": "x"}\n')
    return load_recipe(str(folder / "recipe.yaml"), overrides)


def drawn(recipe: Recipe) -> list[tuple[float, float, int, int]]:
    found = []
    for student in recipe.students:
        assert student.model.type == "textcnn"
        model = student.model
        found.append((student.optimizer.lr, model.dropout, model.filters, model.embedding))
    return found


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_members_lie_in_their_ranges_and_are_the_same_again(tmp_path: Path, sampler: str) -> None:
    sample = {"count": 32, "keys": KEYS, "sampler": sampler}
    found = drawn(load(tmp_path, sample))
    assert len(set(found)) == 32
    assert all(1e-4 <= lr <= 0.1 and 0 <= drop <= 0.5 and 4 <= filters <= 64 for lr, drop, filters, _ in found)
    assert {size for *_, size in found} == {16, 32}
    assert all(isinstance(filters, int) for _, _, filters, _ in found)
    below = sum(lr < math.sqrt(1e-4 * 1e-1) for lr, *_ in found)
    assert 8 <= below <= 24  # of a logarithmic range half lies below the geometric mean
    assert drawn(load(tmp_path, sample)) == found
    assert drawn(load(tmp_path, sample, ["students.cnn.sample.seed=1"])) != found


def test_qmc_leaves_no_gaps(tmp_path: Path) -> None:
    """The first 2^n points of a scrambled Sobol sequence put one into each of 2^n equal parts of every axis."""
    sample = {"count": 16, "keys": {key: KEYS[key] for key in ("optimizer.lr", "model.dropout")}, "sampler": "qmc"}
    found = drawn(load(tmp_path, sample))
    assert sorted(int(dropout / 0.5 * 16) for _, dropout, *_ in found) == list(range(16))


def test_names_grids_and_the_resolved_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, {"count": 3, "keys": {"optimizer.lr": KEYS["optimizer.lr"]}}, grid={"seed": [1, 2]})
    assert [(s.name.split("-lr")[0], s.seed) for s in recipe.students] == [
        (f"cnn-{number}", seed) for number in range(3) for seed in (1, 2)
    ]
    assert recipe.students[0].optimizer.lr == recipe.students[1].optimizer.lr != recipe.students[2].optimizer.lr
    assert recipe.students[0].name == f"cnn-0-lr{recipe.students[0].optimizer.lr:g}-seed1"
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(str(tmp_path / "again.yaml"))
    assert again == recipe
    assert [Plan(again).model("students", s.name) for s in again.students] == [
        Plan(recipe).model("students", s.name) for s in recipe.students
    ]


def test_a_drawn_member_is_the_member_written_out(tmp_path: Path) -> None:
    one = load(tmp_path, {"count": 1, "keys": {"optimizer.lr": [0.25]}})
    plain = load(tmp_path, None, optimizer={"lr": 0.25})
    assert Plan(one).model("students", one.students[0].name) == Plan(plain).model("students", "cnn")


def earlier_run(folder: Path) -> Path:
    """A run whose members did the better the nearer their rate was to 0.01; of two a search ended one."""
    folder.mkdir()
    rates = {"count": 24, "keys": {"optimizer.lr": KEYS["optimizer.lr"]}, "sampler": "qmc"}
    recipe = load(folder, rates)
    run = RunFolder(folder / "r")
    run.root.mkdir()
    (run.root / "recipe.yaml").write_text(dump_recipe(recipe))
    scores = {s.name: 1 - abs(math.log10(s.optimizer.lr) + 2) / 4 for s in recipe.students}
    for name, score in list(scores.items())[:-1]:
        run.model("students", name).mkdir(parents=True)
        history = [{"split": "valid", "epoch": epoch, "accuracy": score - 0.1 * epoch} for epoch in (0, 1)]
        write_json(run.model("students", name) / "history.json", [*history, {"split": "train", "loss": 1.0}])
    rung = {"epoch": 1, "metric": "accuracy", "scores": scores, "kept": [], "stopped": {}}
    write_json(run.root / "search.json", {"fingerprint": "any", "rungs": [rung]})
    return run.root


def test_tpe_draws_near_what_scored_well(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "first")
    sample = {"count": 48, "keys": {"optimizer.lr": KEYS["optimizer.lr"]}, "sampler": "tpe", "after": [str(run)]}
    far = [abs(math.log10(lr) + 2) for lr, *_ in drawn(load(tmp_path, sample))]
    assert sum(distance < 0.5 for distance in far) >= 28  # of evenly drawn ones 16, give or take 3.3
    assert drawn(load(tmp_path, sample)) == drawn(load(tmp_path, sample))


def test_tpe_takes_a_loss_for_the_better_the_smaller_it_is(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "first")
    for path in run.glob("students/*/history.json"):
        entries = json.loads(path.read_text())
        write_json(path, [{**entry, "loss": 1 - entry.get("accuracy", 0)} for entry in entries])
    (run / "search.json").unlink()
    sample = {"count": 48, "keys": {"optimizer.lr": KEYS["optimizer.lr"]}, "sampler": "tpe", "after": [str(run)]}
    far = [abs(math.log10(lr) + 2) for lr, *_ in drawn(load(tmp_path, sample, metric="loss"))]
    assert sum(distance < 0.5 for distance in far) >= 28


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ({"count": 0, "keys": KEYS}, r"sample\.count: .*greater than 0, found 0"),
        ({"count": 2, "keys": {}}, r"sample\.keys: .*at least 1"),
        ({"count": 2}, r"sample\.keys: is missing"),
        ({"count": 2, "keys": {"name": ["a"]}}, r"'name' cannot vary"),
        ({"count": 2, "keys": {"optimizer.lr": {"low": 1, "high": 1}}}, r"high: must be a number above low"),
        ({"count": 2, "keys": {"optimizer.lr": {"low": 0, "high": 1, "log": True}}}, r"low: must be above 0"),
        ({"count": 2, "keys": {"optimizer.lr": {"low": 1, "hihg": 2}}}, r"hihg: unknown key; did you mean 'high'"),
        ({"count": 2, "keys": {"optimizer.lr": {"low": 1.0, "high": "x"}}}, r"optimizer\.lr\.high"),
        ({"count": 2, "keys": {"optimizer.lrr": [1.0]}}, r"optimizer\.lrr: unknown key; did you mean 'lr'"),
        ({"count": 2, "keys": {"model.dropout": {"low": 0.1, "high": 3.0}}}, r"model\.dropout: .*found"),
        ({"count": 2, "keys": {"losses": [[]]}}, r"lists and mappings go to `grid`"),
        ({"count": 2, "keys": KEYS, "sampler": "tpe"}, r"sample\.after: run folders to learn from"),
        ({"count": 2, "keys": KEYS, "after": ["x"]}, r"sample\.after: run folders to learn from"),
        ({"count": 2, "keys": KEYS, "sampler": "tpe", "after": ["/no/such"]}, r"after: /no/such: is not a run folder"),
        ({"count": 2, "keys": KEYS, "sampler": "sobol"}, r"sampler: allowed: 'random', 'qmc' or 'tpe'"),
    ],
)
def test_bad_samples_name_key_and_line(tmp_path: Path, sample: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        load(tmp_path, sample)
    assert all(problem.startswith(f"{tmp_path}/recipe.yaml:1: students.0.sample") for problem in caught.value.problems)


def test_a_run_that_teaches_nothing_is_told(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "first")
    sample = {"count": 2, "keys": {"optimizer.lr": {"low": 1.0, "high": 2.0}}, "sampler": "tpe", "after": [str(run)]}
    with pytest.raises(InputError, match=r"after: .*no finished member of students has optimizer\.lr within"):
        load(tmp_path, sample)


@pytest.mark.parametrize("name", ["recipe.yaml", "search.json", "students/cnn-00*/history.json"])
def test_a_damaged_run_is_told_under_the_key(tmp_path: Path, name: str) -> None:
    run = earlier_run(tmp_path / "first")
    next(run.glob(name)).write_text("{", encoding="utf-8")
    sample = {"count": 2, "keys": {"optimizer.lr": KEYS["optimizer.lr"]}, "sampler": "tpe", "after": [str(run)]}
    with pytest.raises(InputError, match=r"recipe\.yaml:1: students\.0\.sample\.after: .*/first/r/"):
        load(tmp_path, sample)


def test_without_optuna_the_line_to_install_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"sample\.sampler: Optuna is not installed; pip install 'dtrain\[search\]'"):
        load(tmp_path, {"count": 2, "keys": KEYS})


def test_names_that_are_cut_stay_apart(tmp_path: Path) -> None:
    losses = [
        [{"type": "cross_entropy", "label_smoothing": value, "weight": weight}]
        for value in (0.1, 0.2)
        for weight in (1.0, {"start": 1.0, "end": 0.0123456789012345, "shape": "cosine", "until": 0.512345678901234})
    ]
    recipe = load(tmp_path, None, grid={"losses": losses})
    names = [student.name for student in recipe.students]
    assert len(set(names)) == 4
    assert max(map(len, names)) == 120


def test_an_alias_is_no_tie(tmp_path: Path) -> None:
    """An override of one student is not one of others that were written with the same anchor."""
    (tmp_path / "recipe.yaml").write_text(
        "name: r\ndata: {train: t.jsonl}\nstudents:\n"
        "  - &first {name: a, model: {type: textcnn}, optimizer: {lr: 0.5}}\n"
        "  - {<<: *first, name: b}\n"
    )
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), ["students.b.optimizer.lr=0.25", "students.b.model.filters=9"])
    assert [student.optimizer.lr for student in recipe.students] == [0.5, 0.25]
    assert [getattr(student.model, "filters", None) for student in recipe.students][1] == 9
    assert getattr(recipe.students[0].model, "filters", None) != 9

"""How many processes a stage has if the recipe does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain import launch, ranks
from dtrain.recipe import load_recipe
from dtrain.recipe.schema import Recipe
from dtrain.stages import of_run

SMALL = {"type": "textcnn", "embedding": 4, "filters": 2}


def recipe_of(folder: Path, count: int, **sections: Any) -> Recipe:
    (folder / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    values = {
        "name": "tiny",
        "data": {"train": str(folder / "train.jsonl"), "valid": str(folder / "train.jsonl")},
        "teachers": [{"name": "cnn", "model": SMALL}],
        "students": [{"name": f"s{number}", "model": SMALL} for number in range(count)],
    }
    path = folder / "recipe.json"
    path.write_text(json.dumps(values | sections))
    return load_recipe(str(path), [])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that the machine has this many cores and GPUs."""

    def of(cores: int, gpus: int = 0) -> None:
        monkeypatch.setattr(launch, "usable_cores", lambda: cores)
        monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)

    return of


def started(recipe: Recipe, machines: int = 1) -> list[tuple[int, str]]:
    names = [stage.name for stage in of_run(recipe)]
    return [(way.processes, " ".join(group)) for way, group in launch.groups(recipe, names, machines)]


def test_one_process_trains_what_is_trained_together_and_students_have_one_each(tmp_path: Path, machine: Any) -> None:
    recipe = recipe_of(tmp_path, 2)
    machine(2)
    assert started(recipe) == [(1, "prepare finetune precompute"), (2, "distill evaluate report")]
    assert launch.launches_in_words(recipe) == [
        "launch: prepare, finetune, precompute: 1 process with 2 cores",
        "launch: distill, evaluate, report: 2 processes with 1 core each",
    ]
    machine(1)
    assert started(recipe) == [(1, "prepare finetune precompute distill evaluate report")]


def test_one_student_has_all_cores_and_one_launch_does_every_stage(tmp_path: Path, machine: Any) -> None:
    machine(8)
    assert started(recipe_of(tmp_path, 1)) == [(1, "prepare finetune precompute distill evaluate report")]


def test_what_the_recipe_says_counts(tmp_path: Path, machine: Any) -> None:
    machine(2)
    of_all = recipe_of(tmp_path, 2, launch={"processes": 3})
    assert started(of_all) == [(3, "prepare finetune precompute distill evaluate report")]
    of_one = recipe_of(tmp_path, 1, launch={"stages": {"finetune": {"processes": 2}}})
    # `prepare` may have any number of processes, so it does not cause a separate launch.
    assert started(of_one) == [(2, "prepare finetune"), (1, "precompute distill evaluate report")]
    spread = recipe_of(tmp_path, 1, launch={"accelerate_config": "zero2"})
    assert started(spread) == [(2, "prepare finetune precompute distill evaluate report")]


def test_gpus_have_a_process_each(tmp_path: Path, machine: Any) -> None:
    machine(64, gpus=8)
    assert started(recipe_of(tmp_path, 2)) == [(8, "prepare finetune precompute distill evaluate report")]


def test_teachers_that_are_given_do_not_ask_for_a_launch(tmp_path: Path, machine: Any) -> None:
    machine(2)
    given = recipe_of(tmp_path, 2, teachers=[{"name": "cnn", "from": str(tmp_path)}])
    assert started(given)[0] == (1, "prepare finetune precompute")
    stages = ["prepare", "finetune", "distill"]  # there is no store to fill
    assert [way.processes for way, _ in launch.groups(given, stages)] == [2]


@pytest.mark.parametrize(
    ("students", "cores", "expected"),
    [(0, 8, 1), (1, 8, 1), (2, 1, 1), (2, 8, 2), (3, 2, 2), (4, 16, 4), (9, 16, 9), (40, 2, 2), (17, 16, 16)],
)
def test_ranks_of_students(students: int, cores: int, expected: int) -> None:
    assert ranks.side_by_side(students, cores, most=99) == expected


def test_students_of_several_machines_and_those_that_all_ranks_train(tmp_path: Path, machine: Any) -> None:
    machine(4)
    assert [ranks.for_students(recipe_of(tmp_path, 4), 4, machines) for machines in (1, 2, 4)] == [4, 2, 1]
    both = [{"name": n, "model": SMALL, "peers": "pair"} for n in ("a", "b")]
    spread = {"name": "c", "model": SMALL, "parallel": "data"}
    assert ranks.units(recipe_of(tmp_path, 0, students=[*both, spread])) == 1


def test_small_memory_holds_few_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks.psutil, "virtual_memory", lambda: type("M", (), {"total": 3 * 2**30})())
    # At most 3 ranks fit into the memory, and 2 ranks with 4 cores each are faster than 3 with 2.
    assert ranks.for_students(recipe_of(tmp_path, 8), 8) == 2

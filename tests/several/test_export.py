"""One task of a model of several, exported: the folder answers as the model does, and names the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dtrain.errors import InputError
from dtrain.export.check import difference
from dtrain.export.folder import Wish, check_wish, export_model
from dtrain.export.session import script_of
from dtrain.plan import Plan
from dtrain.predict.predictor import Predictor
from dtrain.runtime.distributed import World
from dtrain.stages import prepare
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training.members import Members
from tests.several.test_student import ALONE, _some_scores, load_text

TEXTS = {
    "topic": [["球赛队员", "股票银行的利率", "电"]],
    "same": [["球赛队员", "股票"], ["进攻", "银行的利率"]],
    "names": [["王明在北京市", "李雷"]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tasks_folder: Path, world: World) -> Path:
    """Of a student that was not trained."""
    root = tmp_path_factory.mktemp("several")
    recipe = load_text(root, tasks_folder, ALONE)
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    prepared = Members(PreparedTasks.open(recipe, plan.folder), world, plan.folder).student(recipe.students[0], "", {})
    torch.manual_seed(3)
    made = prepared.prepare()
    place = root / "one"
    made.save(made.make().eval(), place, {"training_rows": 9, "parameters": 7, "mean": 0.5, **_some_scores()})
    return place


@pytest.mark.parametrize("task", TEXTS)
def test_a_task_by_itself(folder: Path, tmp_path: Path, task: str) -> None:
    pytest.importorskip("onnxruntime")
    wish = Wish(folder, "one", "onnx", False, task)
    check_wish(wish)
    export_model(wish, tmp_path / "made")
    found = difference(Predictor(folder, task=task)(*TEXTS[task]), script_of(tmp_path / "made").Model()(*TEXTS[task]))
    assert (found.rows, found.flips) == (len(TEXTS[task][0]), 0) and found.largest < 1e-4


def test_without_a_task(folder: Path, tmp_path: Path) -> None:
    for task, told in (
        (None, "must say which of the tasks of"),
        ("topics", "has no task 'topics'; did you mean 'topic'"),
    ):
        with pytest.raises(InputError, match=told):
            export_model(Wish(folder, "one", "onnx", False, task), tmp_path / "made")
    assert not (tmp_path / "made").exists()

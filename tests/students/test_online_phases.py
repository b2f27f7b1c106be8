"""Students with phases and one online teacher: it computes its outputs once for all of them, and each student ends as
it would alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dtrain.data.encoders import answers_in_words
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare
from dtrain.students.online import OnlineTeachers
from dtrain.students.plan import Machine, plan_groups
from dtrain.teachers.online import OnlineTeacher
from dtrain.training import loop
from dtrain.training.state import TrainState

SHAPE = {"type": "bert", "layers": 2, "heads": 2}
LAYERS = {"name": "layers", "losses": [{"type": "hidden_mse"}], "epochs": 2}
TASK = {"name": "task", "losses": [{"type": "soft_targets"}, {"type": "attention_mse"}], "epochs": 1}
STUDENT = {"batch_size": 8, "accumulation": 2, "phases": [LAYERS, TASK]}
STUDENTS = [
    {"name": "narrow", "model": {**SHAPE, "hidden": 8, "tokenizer": "t"}, **STUDENT},
    {"name": "nezha", "model": {**SHAPE, "type": "nezha", "hidden": 16, "tokenizer": "t"}, **STUDENT},
]


@pytest.fixture
def plan(tmp_path: Path, world: World) -> Callable[..., Plan]:
    """Run everything before `distill`."""
    rows = [{"text": f"{'ab'[n % 2]} one two {n % 5}", "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(name: str, students: Any) -> Plan:
        recipe = {
            "name": name,
            "output_dir": str(tmp_path / "runs"),
            "data": {"train": str(tmp_path / "rows.jsonl"), "valid": str(tmp_path / "rows.jsonl")},
            "teachers": [{"name": "t", "model": {**SHAPE, "hidden": 16, "vocabulary_size": 100}, "epochs": 1}],
            "students": students,
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        made = Plan(load_recipe(str(tmp_path / f"{name}.yaml")))
        for stage in (prepare, finetune, precompute):
            stage.run(made.recipe, world, made.folder)
        return made

    return make


def weights(plan: Plan, name: str) -> dict[str, torch.Tensor]:
    return load_file(plan.folder.model("students", name) / "model.safetensors")


def test_one_pass_for_all_and_each_as_alone(
    plan: Callable[..., Plan], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[OnlineTeacher] = []
    of_group = OnlineTeachers.of_group

    def noted(self: OnlineTeachers, students: Any) -> dict[str, OnlineTeacher]:
        made.extend((found := of_group(self, students)).values())
        return found

    monkeypatch.setattr(OnlineTeachers, "of_group", noted)
    together = plan("together", STUDENTS)
    distill.run(together.recipe, world, together.folder)
    # 20 rows are 3 batches of 2 micro-batches, read twice in the first phase and once in the second. In each phase one
    # more row is computed, to find the parameters on which the losses depend.
    assert [source.passes for source in made] == [13, 7]
    assert "once for all that read the same rows" in answers_in_words(together.recipe)[0]
    for student in STUDENTS:
        alone = plan(f"alone-{student['name']}", [student])
        distill.run(alone.recipe, world, alone.folder)
        expected = weights(alone, student["name"])
        assert all(torch.equal(t, expected[key]) for key, t in weights(together, student["name"]).items())
    assert [source.passes for source in made] == [13, 7] * 3


def test_one_that_fails_leaves_the_other_alone(
    plan: Callable[..., Plan], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.train_step
    steps: list[tuple[str, int]] = []

    def failing(state: TrainState) -> None:
        steps.append((state.job.title, state.position.step))
        if state.job.title == "student narrow, phase 1 (layers)" and state.position.step == 4:
            raise RuntimeError("too hot")
        step(state)

    monkeypatch.setattr(loop, "train_step", failing)
    made = plan("failing", STUDENTS)
    distill.run(made.recipe, world, made.folder)
    assert (made.folder.model("students", "narrow") / "failed.json").exists()
    whole = weights(made, "nezha")
    first = [step for step in steps if step[0].startswith("student")][:2]
    assert sorted(first) == [("student narrow, phase 1 (layers)", 0), ("student nezha, phase 1 (layers)", 0)]
    monkeypatch.undo()
    distill.run(made.recipe, world, made.folder)  # continues from its checkpoint of the first epoch
    assert weights(made, "narrow")
    assert all(torch.equal(tensor, whole[key]) for key, tensor in weights(made, "nezha").items())


def test_students_of_other_phases_are_no_group(plan: Callable[..., Plan]) -> None:
    shorter = {**STUDENTS[0], "name": "shorter", "phases": [TASK]}
    smaller = {**STUDENTS[0], "name": "smaller", "phases": [LAYERS, {**TASK, "batch_size": 4}]}
    plain = {**STUDENTS[0], "name": "plain", **{k: v for k, v in TASK.items() if k != "name"}}
    del plain["phases"]
    students = plan("others", [*STUDENTS, shorter, smaller, plain]).recipe.students
    groups = plan_groups(
        students, plan("others", [*STUDENTS, shorter, smaller, plain]).recipe.placement,
        Machine(1, "cpu", lambda s: "fp32"), recipe=students, task=lambda s: "classification", order=lambda s: 0, cost=lambda s: 1.0,
    )  # fmt: skip
    assert sorted(sorted(group.names) for group in groups) == [["narrow", "nezha"], ["plain"], ["shorter"], ["smaller"]]


def test_what_no_loss_of_a_phase_depends_on_stays_as_it_is(plan: Callable[..., Plan], world: World) -> None:
    """The classifier, and the layer after the one that is compared, stay the same bit for bit; AdamW would let them
    decay.
    """
    first = {"name": "first", "losses": [{"type": "hidden_mse", "layers": [[1, 1]]}], "epochs": 1}
    decay = {"optimizer": {"weight_decay": 0.5, "lr": 0.1}}
    frozen = {"name": "frozen", "losses": [{"type": "hidden_mse"}], "freeze": ["bert"]}
    student = {**STUDENTS[0], **decay, "keep_epochs": True, "phases": [first, TASK]}
    nothing = {**STUDENTS[0], "name": "nothing", "phases": [frozen, TASK]}
    made = plan("behind", [student, nothing])
    distill.run(made.recipe, world, made.folder)
    began = load_file(made.folder.epochs("narrow") / "0000.safetensors")
    ended = load_file(made.folder.phase("narrow", "1-first") / "model.safetensors")
    same = {name for name in began if torch.equal(began[name], ended[name])}
    assert {
        name for name in began if "encoder.layer.1." in name or name.startswith(("classifier", "bert.pooler"))
    } <= same
    assert not any("encoder.layer.0.attention" in name and "weight" in name for name in same)
    failed = json.loads((made.folder.model("students", "nothing") / "failed.json").read_text())
    assert failed["reason"] == (
        "students.nothing.phases.0.losses: none depends on a parameter of the model that the phase lets be trained"
    )
    assert failed["final"]

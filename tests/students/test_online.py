"""Online teachers, which compute their outputs during the training of their students: from a run folder, in one
process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dtrain.data import PreparedData
from dtrain.data.encoders import answers_in_words
from dtrain.errors import InputError, Stopped
from dtrain.knowledge.reader import StoreReader
from dtrain.models import load
from dtrain.plan import Plan
from dtrain.recipe import load_recipe
from dtrain.recipe.schema import Recipe
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare
from dtrain.students.online import OnlineTeachers
from dtrain.students.plan import Machine, plan_groups
from dtrain.tasks.registry import task_of
from dtrain.teachers.online import OnlineTeacher

RECIPE = """
name: r
output_dir: {root}/runs
data: {{train: {root}/rows.jsonl, valid: {root}/rows.jsonl}}
teachers: [{{name: t, model: {{type: nezha, hidden: 16, layers: 3, heads: 2, vocabulary_size: 200}}, epochs: 1}}]
students:
  - name: states
    model: &bert {{type: bert, hidden: 8, layers: 2, heads: 2, tokenizer: t}}
    epochs: 1
    batch_size: 8
    accumulation: 2
    checkpoint_every: 2
    losses: [{{type: hidden_mse}}, {{type: soft_targets}}]
  - name: first
    model: {{type: nezha, hidden: 16, layers: 1, heads: 2, tokenizer: t, init: {{from: t, every: 3}}}}
    epochs: 1
    batch_size: 8
    accumulation: 2
    losses: [{{type: hidden_mse, layers: [[0, 0], [1, 2]]}}, {{type: cross_entropy}}]
  - {{name: logits, model: *bert, epochs: 1, batch_size: 8, accumulation: 2, answers: online}}
launch: {{processes: 1}}
"""


@pytest.fixture
def recipe(tmp_path: Path, world: World) -> Callable[..., Recipe]:
    """Load the recipe with overrides, train its teachers and store their outputs."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, random.integers(1, 9))) for _ in range(37)]
    rows = [{"text": f"{text} {n}", "label": "ab"[n % 2]} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=tmp_path))

    def load(*overrides: str) -> Recipe:
        found = load_recipe(str(tmp_path / "r.yaml"), list(overrides))
        for stage in (prepare, finetune, precompute):
            stage.run(found, world, Plan(found).folder)
        return found

    return load


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[OnlineTeacher]:
    """Collects the teacher sources that are created."""
    made: list[OnlineTeacher] = []
    of_group = OnlineTeachers.of_group

    def noted(self: OnlineTeachers, students: Any) -> dict[str, OnlineTeacher]:
        found = of_group(self, students)
        made.extend(found.values())
        return found

    monkeypatch.setattr(OnlineTeachers, "of_group", noted)
    return made


def test_one_pass_a_micro_batch_for_all_students(
    recipe: Callable[..., Recipe], world: World, passes: list[OnlineTeacher]
) -> None:
    loaded = recipe()
    distill.run(loaded, world, Plan(loaded).folder)
    (source,) = passes
    assert source.passes == 10  # 37 rows in 5 batches of 2 micro-batches, whatever outputs the three students read
    for name in ("states", "first", "logits"):
        folder = Plan(loaded).folder.model("students", name)
        assert not any("losses" in weight for weight in load_file(folder / "model.safetensors"))


def test_each_student_is_what_it_is_alone(
    recipe: Callable[..., Recipe], world: World, passes: list[OnlineTeacher], tmp_path: Path
) -> None:
    loaded = recipe()
    distill.run(loaded, world, Plan(loaded).folder)
    together = {s.name: weights(loaded, s.name) for s in loaded.students}
    for number in (2, 0):
        alone = recipe("output_dir=" + str(tmp_path / f"alone-{number}"))
        alone.students = [alone.students[number]]
        distill.run(alone, world, Plan(alone).folder)
        name = alone.students[0].name
        found = weights(alone, name)
        assert all(torch.equal(found[key], together[name][key]) for key in found)
    assert [source.passes for source in passes] == [10, 10, 10]


def weights(recipe: Recipe, student: str) -> dict[str, torch.Tensor]:
    return load_file(Plan(recipe).folder.model("students", student) / "model.safetensors")


def test_online_and_stored_answers_agree_to_the_stores_type(recipe: Callable[..., Recipe], world: World) -> None:
    loaded = recipe()
    folder = Plan(loaded).folder
    data = PreparedData.open(folder)
    rows = data.part("train", "t")
    (source,) = OnlineTeachers(Plan(loaded), world).of_group(loaded.students[2:]).values()
    source.expect(["logits"])
    store = StoreReader.open(folder.knowledge("t"))
    task = task_of(data)
    for index in (np.arange(5), np.array([30, 7, 11])):  # with other padding than when they were stored
        batch = task.collate(rows, index, {"labels"})
        online = source.outputs(batch, ["logits"])["logits"]
        assert not online.requires_grad and not online.is_inference()
        torch.testing.assert_close(online, store.read("logits", rows.ids[index]), rtol=2**-11, atol=2**-14)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradient_of_a_teacher(recipe: Callable[..., Recipe], world: World, precision: str) -> None:
    """The gradient with respect to the embeddings, for each row by itself; the other outputs of the same pass do not
    change.
    """
    loaded = recipe(
        f"knowledge.precision={precision}",
        "students.logits.losses=[{type: gradient_transfer}, {type: cross_entropy}, {type: hidden_mse}]",
    )
    data = PreparedData.open(Plan(loaded).folder)
    (source,) = OnlineTeachers(Plan(loaded), world).of_group(loaded.students[2:]).values()
    asked = ["embedding_gradients/0", "hidden_states/3", "logits"]
    batch = task_of(data).collate(data.part("train", "t"), np.array([30, 7, 11]), {"labels"})
    found = source.outputs(batch, asked)
    (plain,) = OnlineTeachers(Plan(loaded), world).of_group(loaded.students[2:]).values()
    for name, expected in plain.outputs(batch, asked[1:]).items():
        assert torch.equal(found[name], expected) and not found[name].requires_grad
    whole = load(Plan(loaded).folder.model("teachers", "t")).eval()
    kept: list[torch.Tensor] = []
    whole.nezha.embeddings.register_forward_hook(lambda module, given, output: kept.append(output))
    for row in range(3):
        length = int(batch.inputs["attention_mask"][row].sum())
        logits = whole(**{name: tensor[row : row + 1, :length] for name, tensor in batch.inputs.items()}).logits
        error = torch.nn.functional.cross_entropy(logits, batch.targets["labels"][row : row + 1])
        (expected,) = torch.autograd.grad(error, kept[-1])
        apart = (found[asked[0]][row : row + 1, :length] - expected).norm() / expected.norm()
        assert expected.abs().max() > 1e-5
        assert apart < (1e-4 if precision == "fp32" else 0.1)


def test_teachers_that_nobody_asks_any_more_are_let_go(recipe: Callable[..., Recipe], world: World) -> None:
    loaded = recipe()
    teachers = OnlineTeachers(Plan(loaded), world)
    first = teachers.of_group(loaded.students[:1])["t"]
    teachers.keep_for(loaded.students[1:])
    assert teachers.of_group(loaded.students[1:])["t"].model is first.model
    teachers.keep_for([loaded.students[0].model_copy(update={"teachers": []})])
    assert teachers.of_group(loaded.students[:1])["t"].model is not first.model


def test_without_stored_outputs_there_is_no_store(recipe: Callable[..., Recipe], world: World) -> None:
    loaded = recipe("students.states.losses=[{type: hidden_mse}, {type: cross_entropy}]")
    assert not Plan(loaded).folder.knowledge("t").exists()
    assert Plan(loaded).stage_done("precompute")


def test_stopped_and_continued_bit_for_bit(
    recipe: Callable[..., Recipe], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, an online teacher, and width maps that are trained with the student."""
    found = []
    for name, stops in (("whole", False), ("stopped", True)):
        loaded = recipe("output_dir=" + str(tmp_path / name))
        folder = Plan(loaded).folder
        if stops:
            with monkeypatch.context() as patch, pytest.raises(Stopped):
                patch.setattr("dtrain.training.loop.ASK_SECONDS", -1.0)
                patch.setattr("dtrain.runtime.stop.StopRequest.anywhere", lambda self: True)
                patch.setattr("dtrain.runtime.stop.StopRequest.reason", "test", raising=False)
                distill.run(loaded, world, folder)
            assert list((folder.checkpoints("students", "states")).glob("step-*"))
        distill.run(loaded, world, folder)
        found.append({s.name: weights(loaded, s.name) for s in loaded.students})
    for student, own in found[0].items():
        assert all(torch.equal(tensor, found[1][student][name]) for name, tensor in own.items())


def test_a_teacher_that_is_not_there(recipe: Callable[..., Recipe], world: World) -> None:
    loaded = recipe()
    changed = load_recipe(str(Path(loaded.output_dir).parent / "r.yaml"), ["teachers.t.epochs=2"])
    prepare.run(changed, world, Plan(changed).folder)
    with pytest.raises(
        InputError,
        match=r"students\.states: needs its teacher t, which answers beside it, and .* is not complete; run finetune",
    ):
        distill.run(changed, world, Plan(changed).folder)


def test_students_of_one_teacher_are_shared_out_over_ranks(recipe: Callable[..., Recipe]) -> None:
    students = recipe().students
    for ranks, expected in ((1, [3]), (2, [2, 1]), (5, [1, 1, 1])):
        groups = plan_groups(
            students, recipe().placement, Machine(ranks, "cpu", lambda s: "fp32"), recipe=students,
            task=lambda s: "classification", order=lambda s: 0, cost=lambda s: 1.0,
        )  # fmt: skip
        assert sorted((len(group.students) for group in groups), reverse=True) == expected
        assert {group.way for group in groups} == {"beside" if size > 1 else "alone" for size in expected}


def test_check_and_plan_say_who_answers_beside_whom_and_what_it_costs(recipe: Callable[..., Recipe]) -> None:
    """For the last student: the teacher has 3 layers of 16 and the student one; a forward pass is a third of a step."""
    loaded = recipe()
    lines = answers_in_words(loaded)
    assert lines[0].startswith("answers: states: hidden_states of t computed beside it, logits read from its store (")
    assert lines[1].startswith(
        "answers: first: hidden_states of t computed beside it (1 times the computing of a student's step,"
    )
    assert (
        lines[2].startswith("answers: logits: logits of t computed beside it (") and "MB of weights a rank)" in lines[2]
    )


def test_taggers_learn_from_layers_and_from_online_emissions(tmp_path: Path, world: World) -> None:
    label = [{"start": 0, "end": 2, "type": "PER"}]
    rows = [{"text": f"张{n}在北京" + "工作" * (n % 4), "label": label} for n in range(10)] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = "{type: tagger, lstm: null, encoder: {type: %s, hidden: 8, layers: 2, heads: 2%s}}"
    (tmp_path / "r.yaml").write_text(
        f"name: r\noutput_dir: {tmp_path}/runs\n"
        f"data: {{task: tagging, train: {tmp_path}/rows.jsonl, valid: {tmp_path}/rows.jsonl, columns: {{span_end: exclusive}}}}\n"
        f"teachers: [{{name: t, epochs: 1, model: {shape % ('nezha', '')}}}]\nstudents:\n"
        f"  - name: s\n    model: {shape % ('bert', ', tokenizer: t')}\n    epochs: 1\n    answers: online\n"
        "    losses: [{type: hidden_mse}, {type: attention_mse}, {type: emission_regression}, {type: tag_likelihood}]\n"
        "launch: {processes: 1}\n"
    )
    loaded = load_recipe(str(tmp_path / "r.yaml"))
    folder = Plan(loaded).folder
    for stage in (prepare, finetune, precompute, distill):
        stage.run(loaded, world, folder)
    assert not folder.knowledge("t").exists()
    history = json.loads((folder.model("students", "s") / "history.json").read_text())
    assert {"hidden_mse", "attention_mse", "emission_regression", "tag_likelihood"} <= history[0].keys()

"""Phases of a student of several tasks: first on all of them, then on one, each stopped and continued by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dtrain.data.tokenizers import SPECIALS
from dtrain.errors import DtrainError, InputError
from dtrain.models import load
from dtrain.plan import Plan
from dtrain.predict.choose import choose
from dtrain.recipe import Recipe, dump_recipe, load_recipe
from dtrain.runfolder import file_fingerprint, read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, evaluate, prepare, report
from dtrain.students.phases import places, unknown_parameters
from dtrain.training import loop
from dtrain.training.state import TrainState
from tests.several.conftest import TASKS

PHASES = [
    {"name": "all", "epochs": 1, "optimizer": {"lr": 0.01}},
    {"name": "tune", "tasks": ["topic"], "epochs": 1, "optimizer": {"lr": 0.005, "weight_decay": 0.5}},
]


def load_phases(
    folder: Path, files: Path, phases: list[dict[str, Any]], *changes: str, vocabulary: str = "vocabulary_size: 120"
) -> Recipe:
    student = f"""\
students:
  - name: one
    tasks: [topic, same, names]
    model:
      type: multi_task
      encoder: {{type: bert, hidden: 8, heads: 2, layers: 1, intermediate: 16, {vocabulary}, dropout: 0.1}}
    batch_size: 12
    checkpoint_every: 1
    phases: {json.dumps(phases)}
"""
    teachers = "teachers: [{name: topic_t, task: topic, model: {type: textcnn}}]\n"
    text = f"name: r\noutput_dir: {folder}/runs\n{TASKS.format(folder=files)}{teachers}{student}report: {{latency: false}}\n"
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(str(folder / "r.yaml"), list(changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tasks_folder: Path, world: World) -> Plan:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("phases")
    recipe = load_phases(folder, tasks_folder, PHASES, "teachers=[]")
    plan = Plan(recipe)
    for stage in (prepare, distill, evaluate, report):
        stage.run(recipe, world, plan.folder)
    return plan


def weights(plan: Plan) -> list[dict[str, torch.Tensor]]:
    return [load_file(place.model / "model.safetensors") for place in places(plan.folder, plan.recipe.students[0])]


def test_a_phase_on_one_task_leaves_the_heads_of_others(done: Plan) -> None:
    before, after = weights(done)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    heads = {name.split(".")[1] for name in changed if name.startswith("heads.")}
    assert heads == {"topic"}  # nor does weight decay reach the others
    assert any(name.startswith("encoder.") for name in changed)


def test_it_is_scored_on_its_own_tasks_and_the_folder_answers_for_all(done: Plan) -> None:
    folder = done.folder.model("students", "one")
    metrics = read_json(folder / "metrics.json")
    assert [(phase["name"], phase["tasks"]) for phase in metrics["phases"]] == [
        ("all", ["topic", "same", "names"]),
        ("tune", ["topic"]),
    ]
    first, second = (phase["scores"] for phase in metrics["phases"])
    assert first["mean"] == pytest.approx((first["topic.accuracy"] + first["same.accuracy"] + first["names.f1"]) / 3)
    assert second["mean"] == second["topic.accuracy"] == metrics["mean"] and "same.accuracy" not in second
    assert [metrics["phases"][n]["steps"] for n in (0, 1)] == [5 + 4 + 3, 5]
    model = load(folder)
    ids, mask = torch.randint(5, 20, (2, 8)), torch.ones(2, 8, dtype=torch.int64)
    for task in ("topic", "same", "names"):
        assert torch.isfinite(model.of_task(task)(input_ids=ids, attention_mask=mask).logits).all()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "- phase all: topic and same and names\n- phase tune: topic\n" in card
    assert "- task `same` (pairs); labels: 0, 1; of an earlier phase" in card


def test_the_report_has_its_phases(done: Plan) -> None:
    results = read_json(done.folder.report / "results.json")
    (row,) = results["groups"]
    assert set(row["scores"]) == {"topic", "same", "names"}
    assert done.reported()
    tables = {
        task: [phase["name"] for phase in read_json(done.folder.report / task / "results.json")["phases"]]
        for task in ("topic", "same")
    }
    assert tables == {"topic": ["all", "tune"], "same": ["all"]}
    page = (done.folder.report / "topic" / "report.md").read_text(encoding="utf-8")
    assert "| one | tune | train | cross_entropy |" in page


@pytest.mark.parametrize(("phase", "step"), [("all", 7), ("tune", 3)])
def test_stopped_in_a_phase_and_continued(
    tmp_path: Path, tasks_folder: Path, world: World, done: Plan, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    recipe = load_phases(tmp_path, tasks_folder, PHASES, "teachers=[]")
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    train_step = loop.train_step

    def failing(state: TrainState) -> None:
        if phase in state.job.title and state.position.step == step:
            raise RuntimeError("too hot")
        train_step(state)

    with monkeypatch.context() as patch, pytest.raises(DtrainError, match="every student failed"):
        patch.setattr(loop, "train_step", failing)
        distill.run(recipe, world, plan.folder)
    distill.run(recipe, world, plan.folder)
    for one, other in zip(
        places(plan.folder, recipe.students[0]), places(done.folder, recipe.students[0]), strict=True
    ):
        assert file_fingerprint(one.model / "model.safetensors") == file_fingerprint(other.model / "model.safetensors")
        assert read_json(one.model / "history.json") == read_json(other.model / "history.json")


def test_one_phase_is_a_student_without_phases(tmp_path: Path, tasks_folder: Path) -> None:
    """Of each task the same student of one, and written out it is read as the same."""
    recipe = load_phases(tmp_path, tasks_folder, PHASES)
    (student,) = recipe.students
    assert [list(training.parts) for training in student.trainings] == [["topic", "same", "names"], ["topic"]]
    assert [[loss.type for loss in terms] for terms in student.phases[0].losses.values()] == [
        ["cross_entropy", "soft_targets"], ["cross_entropy"], ["tag_likelihood"],
    ]  # fmt: skip
    assert student.asks.stored == {"topic_t": ["logits"]} and student.all_epochs == 2
    assert [len(student.of_task(task).phases) for task in ("topic", "same", "names")] == [2, 1, 1]
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(str(tmp_path / "again.yaml"))
    assert again == recipe
    first, other = (Plan(each) for each in (recipe, again))
    assert first.model("students", "one") == other.model("students", "one")
    assert first.phase("one", 0) == other.phase("one", 0) != first.phase("one", 1)
    changed = load_phases(tmp_path, tasks_folder, [PHASES[0], {**PHASES[1], "tasks": ["same"]}])
    assert Plan(changed).phase("one", 0) == first.phase("one", 0)
    assert Plan(changed).model("students", "one") != first.model("students", "one")


def test_parameters_of_a_phase_are_looked_for(tmp_path: Path, tasks_folder: Path) -> None:
    def told(*prefixes: str) -> list[str]:
        phases = [PHASES[0], {**PHASES[1], "train": list(prefixes)}]
        return unknown_parameters(load_phases(tmp_path, tasks_folder, phases))

    assert not told("heads.topic", "encoder.encoder.layer.0")
    assert told("heads.topics") == [
        "students.one.phases.1.train: no parameter starts with 'heads.topics' (the model has encoder, heads)"
    ]


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        ({"tasks": ["sane"]}, r"phases\.1 \(tune\)\.tasks\.0: 'sane' is no task of this student; did you mean 'same'\?"),
        ({"tasks": ["same", "same"]}, r"phases\.1 \(tune\)\.tasks\.1: 'same' is named twice"),
        ({"losses": [{"type": "cross_entropy"}]}, r"phases\.1 \(tune\)\.losses: must be by task: .*\(allowed: topic\)"),
        ({"losses": {"same": [{"type": "cross_entropy"}]}}, r"tune\)\.losses\.same: is no task of this phase"),
        ({"losses": {"topic": [{"type": "tag_likelihood"}]}}, r"phases\.1 \(tune\)\.losses\.topic\.0 \(tag_like.*is not for"),
        (
            {"tasks": ["same"], "losses": {"same": [{"type": "soft_targets"}]}},
            r"students\.0\.phases\.1 \(tune\)\.losses\.same\.0 \(soft_targets\): needs a teacher of task 'same'",
        ),
        ({"metric": "accuracy"}, r"phases\.1 \(tune\)\.metric: 'accuracy' is of one task"),
        ({"rows": ["corpus"]}, r"phases\.1 \(tune\)\.rows: 'corpus' is not for a student of several tasks"),
        ({"tasks": ["same"], "rows": ["transfer"]}, r"phases\.1 \(tune\)\.rows: 'transfer' needs tasks\.same\.transfer"),
        ({"tasks": ["same", "topic"], "optimizer": {"type": "lamb"}}, r"tune\)\.optimizer\.type: 'lamb' scales every"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, tasks_folder: Path, phase: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_phases(tmp_path, tasks_folder, [PHASES[0], {**PHASES[1], **phase}])


def test_refused_beside_other_students(tmp_path: Path, tasks_folder: Path) -> None:
    with pytest.raises(InputError, match=r"tasks\.2: no phase is on 'names'; name it in the `tasks` of one"):
        load_phases(tmp_path, tasks_folder, [{**PHASES[0], "tasks": ["topic", "same"]}, PHASES[1]])
    with pytest.raises(InputError, match=r"students\.0\.epochs: is read by no phase"):
        load_phases(tmp_path, tasks_folder, PHASES, "students.one.epochs=3")
    alone = ["students.0.tasks=null", "students.0.task=topic", "students.0.model={type: bilstm}"]
    with pytest.raises(InputError, match=r"phases\.1 \(tune\)\.tasks: is for a phase of a student of several tasks"):
        load_phases(tmp_path, tasks_folder, PHASES, *alone)


def test_each_task_has_its_own_rows_of_a_tokenizer_that_is_given(
    tmp_path: Path, tasks_folder: Path, world: World
) -> None:
    """In each task another model may be the first that reads with it: here teachers that are not trained."""
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*SPECIALS, *"球赛队员进攻胜负股票银行利率基金电影王明北京的"]) + "\n"
    )
    given = f"vocabulary: {tmp_path}/vocab.txt"
    phases = [{"name": "all", "epochs": 1}, {"name": "tune", "tasks": ["topic"], "epochs": 1}]
    teacher = f"{{type: bert, hidden: 8, heads: 2, layers: 1, {given}}}"
    teachers = f"teachers=[{{name: a, task: topic, model: {teacher}}}, {{name: b, task: same, model: {teacher}}}]"
    recipe = load_phases(tmp_path, tasks_folder, phases, teachers, "students.one.teachers=[]", vocabulary=given)
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    distill.run(recipe, world, plan.folder)
    recipe.teachers = []  # which are not trained
    evaluate.run(recipe, world, plan.folder)
    scored = read_json(plan.folder.model("students", "one") / "evaluation.json")["tasks"]
    assert set(scored) == {"topic", "same", "names"}
    assert {path.name for path in plan.folder.data.glob("*/encoded/*")} == {"a", "b", "one"}
    # Which of the trained models answers for a task goes by its score; this one has none, its last phase was on another.
    assert choose(None, Plan(recipe).tasks["same"]) == ("students", "one")

"""A student of several tasks: what a recipe may say of it, and that its training is that of its tasks together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.errors import DtrainError, InputError
from dtrain.losses.objective import Objective
from dtrain.losses.several import TasksObjective
from dtrain.metrics.tasks import joined_scores, scores_of
from dtrain.models import load
from dtrain.models.multi_task import MultiTask
from dtrain.plan import Plan
from dtrain.recipe import Recipe, dump_recipe, load_recipe
from dtrain.recipe.several import TAKEN
from dtrain.runtime.distributed import World
from dtrain.stages import prepare
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training.members import Members
from dtrain.training.model_job import Prepared
from dtrain.training.several import baseline_of
from tests.several.conftest import TASKS

TEACHERS = """\
teachers:
  - {name: topic_t, task: topic, model: {type: textcnn, embedding: 8, filters: 8}}
  - {name: names_t, task: names, model: {type: tagger, embedding: 8, lstm: 8}}
"""
STUDENTS = """\
students:
  - name: one
    tasks: [topic, same, names]
    model:
      type: multi_task
      encoder: {type: bert, hidden: 8, heads: 2, layers: 1, intermediate: 16, vocabulary_size: 120, dropout: 0.0}
      dropout: 0.0
    epochs: 2
    batch_size: 8
    optimizer: {lr: 0.01}
"""
ALONE = ["teachers=[]"]  # without teachers nothing has to be trained first


def load_text(folder: Path, files: Path, overrides: list[str] | None = None) -> Recipe:
    text = f"name: r\noutput_dir: {folder}/runs\n{TASKS.format(folder=files)}{TEACHERS}{STUDENTS}"
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(str(folder / "r.yaml"), overrides)


# --- the recipe ----------------------------------------------------------------------------------------


def test_of_each_task_it_is_a_student_of_one(tmp_path: Path, tasks_folder: Path) -> None:
    recipe = load_text(tmp_path, tasks_folder)
    (student,) = recipe.students
    assert (student.metric, student.mixing, student.metrics["names"]) == ("mean", "proportional", "f1")
    assert student.teachers == ["topic_t", "names_t"]
    parts = {task: student.of_task(task) for task in student.tasks}
    assert {task: part.teachers for task, part in parts.items()} == {
        "topic": ["topic_t"],
        "same": [],
        "names": ["names_t"],
    }
    assert [loss.type for loss in parts["topic"].losses] == ["cross_entropy", "soft_targets"]
    assert [loss.type for loss in parts["same"].losses] == ["cross_entropy"]  # hard targets alone
    assert parts["topic"].rows == ["train", "transfer"] and parts["same"].rows == ["train"]
    assert [view.students[0] for view in recipe.views()] == list(parts.values())
    assert recipe.of_task("names").knowledge.outputs == ["marginals"]
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_its_identity_follows_what_decides_it(tmp_path: Path, tasks_folder: Path) -> None:
    def identity(*overrides: str) -> str:
        return Plan(load_text(tmp_path, tasks_folder, list(overrides))).model("students", "one")

    first = identity()
    for change in (
        *("students.one.mixing=equal", "students.one.mixing={temperature: 2}", "students.one.metrics={topic: f1}"),
        *("students.one.tasks=[topic, same]", "students.one.losses={topic: [{type: teacher_annealing}]}"),
        *("tasks.same.max_length=12", "teachers.topic_t.epochs=7", "students.one.teachers=[topic_t]"),
        "students.one.baseline={topic: 0.5, same: 0.5, names: 0.5}",
    ):
        assert identity(change) != first, change
    assert identity("students.one.mixing=proportional", "students.one.metric=mean") == first


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["tasks=[topic, sane]"], r"students\.0\.tasks\.1: no task 'sane'; did you mean 'same'\? \(allowed: topic, same, names\)"),
        (["tasks=[topic, names, topic]"], r"tasks\.2: 'topic' is named twice"),
        (["tasks=[topic]"], r"tasks: names one task: write `task: topic`, and a model of one task in place of multi_task"),
        (["task=topic"], r"task: is not for a student of several tasks"),
        (["peers=p"], r"peers: is not for a student of several tasks"),
        (["noisy={}"], r"noisy: is not for a student of several tasks"),
        (["tasks=null", "task=topic", "mixing=equal"], r"mixing: is for a student of several tasks; name them in"),
        (["tasks=null", "task=topic"], r"model\.type: 'multi_task' is for a student of several tasks, which names"),
        (["tasks=null", "task=topic", "losses={topic: [{type: cross_entropy}]}"], r"losses: by task is for a student of"),
        (["model={type: bert}"], r"'bert' has a head for one task \(allowed: multi_task\); write \{type: multi_task, enc"),
        (["model={type: tagger}"], r"model\.type: 'tagger' has a head for one task \(allowed: multi_task\)"),
        (["model={type: multi_task}"], r"model\.encoder: is missing"),
        (["mixing=root"], r"mixing: allowed: 'proportional' or 'equal', found 'root'"),
        (["mixing={temperature: 0.5}"], r"mixing\.temperature: .*greater than or equal to 1"),
        (["mixing={temprature: 2}"], r"mixing\.temprature: unknown key; did you mean 'temperature'"),
        (["losses=[{type: cross_entropy}]"], r"losses: must be by task: a mapping from a task to a list"),
        (["losses={nmes: [{type: cross_entropy}]}"], r"losses\.nmes: is no task of this student; did you mean 'names'"),
        (["losses={names: [{type: cross_entropy}]}"], r"losses\.names\.0 \(cross_entropy\): is not for task 'tagging'"),
        (["losses={same: [{type: soft_targets}]}"], r"losses\.same\.0 \(soft_targets\): needs a teacher of task 'same'"),
        (["losses={topic: [{type: soft_targets, temperatur: 3}]}"], r"losses\.topic\.0\.temperatur: unknown key"),
        (["losses={topic: [{type: soft_targets, teachers: [names_t]}]}"], r"losses\.topic\.0 .*no teacher 'names_t'"),
        (["metric=accuracy"], r"metric: 'accuracy' is of one task \(allowed: mean; `metrics` says"),
        (["metrics={names: f1_mcro}"], r"metrics\.names: 'f1_mcro' is not for task 'tagging'; did you mean 'f1_macro'"),
        (["metrics={topics: f1}"], r"metrics\.topics: is no task of this student; did you mean 'topic'"),
        (["baseline={topic: 0.5}"], r"baseline: must have a score for each task, found none for same, names"),
        (["baseline={topic: 1, same: 1, names: 0}"], r"baseline\.names: .*greater than 0"),
        (["baseline={topic: names_t, same: 1, names: 1}"], r"baseline\.topic: no teacher of task 'topic' is called 'names_t'.*\(allowed: a number, topic_t\)"),
        (["baseline={topic: topic_t, same: one, names: 1}"], r"baseline\.same: .*; a student has no score before .*and no teacher, as it has none"),
        (["baseline={topic: '0,5', same: 1, names: 1}"], r"baseline\.topic: no teacher .* '0,5'"),
        (["baseline={topic: 1, same: 1, names: .nan}"], r"baseline\.names: "),
        (["baseline={topic: 1, same: 1, names: 1}", "metrics={same: loss}"], r"metrics\.same: 'loss' is no score that"),
        (["teachers=[same_t]"], r"teachers: no teacher 'same_t'"),
        (["rows=[transfer]"], r"rows: 'transfer' needs tasks\.same\.transfer or tasks\.same\.augment"),
        (["tasks=[same, names]", "rows=[train, transfer]"], r"rows: 'transfer' needs a task with rows without labels"),
        (["optimizer={type: lamb}"], r"optimizer\.type: 'lamb' scales every step"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, tasks_folder: Path, changes: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_text(tmp_path, tasks_folder, [f"students.one.{change}" for change in changes])


def test_refused_beside_other_sections(tmp_path: Path, tasks_folder: Path) -> None:
    with pytest.raises(InputError, match=r"tasks: tasks\.names\.normalize differs from tasks\.topic\.normalize"):
        load_text(tmp_path, tasks_folder, ["tasks.names.normalize.lower=false"])
    with pytest.raises(
        InputError, match=r"teachers\.0\.model\.type: 'multi_task' is for a student of several tasks, which names"
    ):
        load_text(tmp_path, tasks_folder, ["teachers.0.model={type: multi_task, encoder: {type: bert}}"])
    with pytest.raises(InputError, match=r"tasks: are those of a recipe with several `tasks`"):
        (tmp_path / "s.yaml").write_text(f"name: s\ndata: {{train: t.jsonl}}\n{STUDENTS}", encoding="utf-8")
        load_recipe(str(tmp_path / "s.yaml"))


def test_a_task_whose_name_no_head_can_have(tmp_path: Path, tasks_folder: Path) -> None:
    assert {name for name in dir(torch.nn.ModuleDict()) if not name.startswith("_")} <= TAKEN
    load_text(tmp_path, tasks_folder, ALONE)
    text = (tmp_path / "r.yaml").read_text(encoding="utf-8").replace("topic:", "type:").replace("[topic,", "[type,")
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"students\.0\.tasks\.0: 'type': a head cannot be called so by torch"):
        load_recipe(str(tmp_path / "r.yaml"), ALONE)


# --- scores --------------------------------------------------------------------------------------------


def test_the_mean_of_metrics() -> None:
    scores = {"a": {"accuracy": 0.6, "f1": 0.5, "loss": 1.0, "rows": 10}, "b": {"f1": 0.9, "loss": 2.0, "rows": 4}}
    joined = joined_scores(scores, {"a": "accuracy", "b": "f1"}, {})
    assert (joined["mean"], joined["loss"], joined["rows"]) == (pytest.approx(0.75), 1.5, 14)
    assert scores_of(joined, "a") == scores["a"] and scores_of(joined, "b") == scores["b"]
    assert scores_of(scores["a"], "a") == scores["a"] and scores_of(joined, "") == joined
    relative = joined_scores(scores, {"a": "accuracy", "b": "f1"}, {"a": 0.5, "b": 0.9})
    assert relative["mean"] == pytest.approx((1.2 + 1.0) / 2)
    assert joined_scores(scores, {"a": "loss", "b": "loss"}, {})["mean"] == -1.5


def test_a_teachers_score_is_the_measure(tmp_path: Path, tasks_folder: Path) -> None:
    """By name, or by a pattern for several; it decides the student like a teacher that it learns from."""
    grid, baseline = (
        "teachers.topic_t.grid={seed: [1, 2]}",
        "students.one.baseline={topic: topic_t, same: 0.5, names: 'n*_t'}",
    )
    recipe = load_text(
        tmp_path, tasks_folder, [grid, baseline, "students.one.teachers=[]", "students.one.metrics={topic: f1}"]
    )
    (student,) = recipe.students
    assert student.measures == {"topic": ["topic_t-seed1", "topic_t-seed2"], "names": ["names_t"]}
    assert student.baseline == {"same": 0.5, **student.measures, "names": "names_t"}
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe
    folder = Plan(recipe).folder
    with pytest.raises(
        DtrainError, match=r"students\.one\.baseline\.topic: topic_t-seed1 has no score yet; run the stage"
    ):
        baseline_of(student, folder)
    before = Plan(recipe).model("students", "one")
    scores = {"topic_t-seed1": 0.5, "topic_t-seed2": 0.75, "names_t": 0.8}
    for name, score in scores.items():
        folder.model("teachers", name).mkdir(parents=True)
        (folder.model("teachers", name) / "metrics.json").write_text(json.dumps({"accuracy": 0.1, "f1": score}))
    assert baseline_of(student, folder) == {"same": 0.5, "topic": 0.625, "names": 0.8}
    changed = load_text(
        tmp_path, tasks_folder, [grid, baseline, "students.one.teachers=[]", "teachers.names_t.epochs=9"]
    )
    assert Plan(changed).model("students", "one") != before
    (folder.model("teachers", "names_t") / "model.safetensors").write_bytes(b"others")
    assert Plan(recipe).model("students", "one") != before
    (folder.model("teachers", "names_t") / "metrics.json").write_text('{"f1": 0.0}')
    with pytest.raises(
        InputError, match=r"baseline\.names: names_t: f1 0 on the validation rows, by which nothing can be"
    ):
        baseline_of(student, folder)


# --- the model and its gradients -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tasks_folder: Path, world: World) -> Iterator[Prepared]:
    """What the student trains with, without teachers."""
    folder = tmp_path_factory.mktemp("student")
    recipe = load_text(folder, tasks_folder, ALONE)
    plan = Plan(recipe)
    prepare.run(recipe, world, plan.folder)
    members = Members(PreparedTasks.open(recipe, plan.folder), world, plan.folder)
    yield members.student(recipe.students[0], "identity", {}).prepare()


@pytest.fixture
def model(prepared: Prepared) -> MultiTask:
    torch.manual_seed(5)
    made = prepared.make()
    assert isinstance(made, MultiTask)
    return made


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_a_mixed_epoch_has_the_gradients_of_its_tasks_one_by_one(prepared: Prepared, model: MultiTask) -> None:
    """In float64; what a tagger's head computes in float32 has the same bits in both."""
    model.double()
    losses = prepared.losses(model)
    feed = prepared.feed(losses)
    objective = prepared.objective(model, losses, together=False)
    batches = feed.epoch(1, 0, 8, None)
    tasks = [feed.task_of(batch) for batch in batches]
    assert set(tasks) == {"topic", "same", "names"} and tasks != sorted(tasks)
    for batch in batches:
        objective(feed.batch(batch))[0].backward()
    mixed = gradients(model)
    assert set(mixed) == {name for name, _ in model.named_parameters()}
    model.zero_grad()
    for task in ("names", "topic", "same"):
        for batch in batches:
            if feed.task_of(batch) == task:
                # The usual objective, of a model of this task alone.
                alone = Objective(model.of_task(task), losses[task], objective.asks[task])
                alone(feed.batch(batch))[0].backward()
    for name, found in gradients(model).items():
        torch.testing.assert_close(mixed[name], found, rtol=1e-11, atol=1e-13)
    assert mixed["heads.topic.classifier.weight"].abs().sum() > 0


def test_a_head_of_another_task_has_a_gradient_of_zero(prepared: Prepared, model: MultiTask) -> None:
    losses = prepared.losses(model)
    feed = prepared.feed(losses)
    objective: TasksObjective = prepared.objective(model, losses, together=False)
    seen: set[str] = set()
    for batch in feed.epoch(1, 0, 8, None):
        task = feed.task_of(batch)
        seen.add(task)
        model.zero_grad()
        total, sums, counts = objective(feed.batch(batch))
        total.backward()
        found = gradients(model)
        assert len(found) == len(list(model.parameters()))  # DDP waits for each
        for name, gradient in found.items():
            other = name.startswith("heads.") and not name.startswith(f"heads.{task}.")
            assert torch.isfinite(gradient).all()
            assert (gradient == 0).all() if other else True, name
        assert {name.split(".")[0] for name in sums} == {task} == {name.split(".")[0] for name in counts}
    assert seen == {"topic", "same", "names"}


@pytest.mark.parametrize("constrain", [False, True])
@pytest.mark.parametrize("crf", [False, True])
def test_other_heads_change_no_answer(model: MultiTask, crf: bool, constrain: bool) -> None:
    if constrain and not crf:
        pytest.skip("constrain needs a CRF")
    config = {**model.config, "crf": crf, "constrain": constrain}
    del model
    from dtrain.models import own

    torch.manual_seed(1)
    made = own.from_config({**config, "id2label": {}})
    ids, mask = torch.randint(5, 20, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    for task in ("topic", "names"):
        view = made.train().of_task(task)
        tags = {"tags": torch.zeros(3, 7, dtype=torch.int64)} if task == "names" else {}
        training = view(input_ids=ids, attention_mask=mask, **tags)
        with torch.no_grad():
            plain = view(input_ids=ids, attention_mask=mask, **tags)
        assert torch.equal(training.logits, plain.logits)
        assert training.logits.requires_grad
        if task == "names":
            assert torch.equal(training.nll, plain.nll) and torch.isfinite(training.nll).all()


def test_the_folder_loads_alone(prepared: Prepared, model: MultiTask, tmp_path: Path) -> None:
    prepared.save(model.eval(), tmp_path, {"training_rows": 9, "parameters": 7, "mean": 0.5, **_some_scores()})
    loaded = load(tmp_path)
    assert isinstance(loaded, MultiTask)
    ids, mask = torch.randint(5, 20, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    for task in ("topic", "same", "names"):
        found, expected = (one.of_task(task)(input_ids=ids, attention_mask=mask) for one in (loaded, model))
        assert torch.equal(found.logits, expected.logits)
    assert list(loaded.of_task("names").config["id2label"].values())[0] == "O"
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(tmp_path / "encoder")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name])


def _some_scores() -> dict[str, Any]:
    one = {"accuracy": 0.5, "f1": 0.5, "precision": 0.5, "recall": 0.5}
    return {f"{task}.{name}": value for task in ("topic", "same", "names") for name, value in one.items()}


def test_rows_of_all_tasks_side_by_side(prepared: Prepared, model: MultiTask) -> None:
    losses = prepared.losses(model)
    feed = prepared.feed(losses)
    assert len(feed.rows.lengths) == prepared.count == len(feed.units)
    for batch in feed.epoch(1, 0, 8, None):
        found = feed.batch(batch)
        assert np.array_equal(found.rows, batch) and found.task == feed.task_of(batch)
        assert (found.units.numpy() == feed.units[batch]).all()

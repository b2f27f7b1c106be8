"""Several tasks in one recipe, and models of one task each: whose rows are whose, how keys are told, what stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtrain.__main__ import main
from dtrain.data import PreparedData
from dtrain.data.tokenizers import SPECIALS
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import Recipe, dump_recipe, load_recipe
from dtrain.recipe.data import Data
from dtrain.runtime.distributed import World
from dtrain.stages import prepare
from tests.several.conftest import TASKS

MODELS = """\
teachers:
  - {name: topic_t, task: topic, model: {type: textcnn, embedding: 8, filters: 8}}
  - {name: same_t, task: same, model: {type: bert, hidden: 8, heads: 2, layers: 1, vocabulary_size: 120}}
  - {name: names_t, task: names, model: {type: tagger, embedding: 8, lstm: 8}}
students:
  - {name: topic_s, task: topic, model: {type: bilstm, embedding: 8, hidden: 8}}
  - {name: same_s, task: same, model: {type: bilstm, embedding: 8, hidden: 8}}
  - {name: names_s, task: names, model: {type: idcnn, embedding: 8, filters: 8}}
"""


def load(folder: Path, files: Path, overrides: list[str] | None = None, models: str = MODELS) -> Recipe:
    text = f"name: r\noutput_dir: {folder}/runs\n{TASKS.format(folder=files)}{models}"
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(str(folder / "r.yaml"), overrides)


def test_each_task_is_a_recipe_of_its_own(tmp_path: Path, tasks_folder: Path) -> None:
    recipe = load(tmp_path, tasks_folder)
    assert [view.task for view in recipe.views()] == ["topic", "same", "names"]
    for view in recipe.views():
        assert view.data is recipe.tasks[view.task] and view.data.key == f"tasks.{view.task}"
        assert [m.name for m in (*view.teachers, *view.students)] == [f"{view.task}_t", f"{view.task}_s"]
    outputs = {view.task: view.knowledge.outputs for view in recipe.views()}
    assert outputs == {"topic": ["logits"], "same": ["logits"], "names": ["marginals"]}
    assert recipe.students[0].teachers == ["topic_t"]
    assert recipe.students[0].rows == ["train", "transfer"] and recipe.students[1].rows == ["train"]
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize("text", ["corpus={sources: [x]}", "pretrain={model: {type: bert}, corpus: {sources: [x]}}"])
def test_plain_text_is_normalised_as_all_tasks_are(tmp_path: Path, tasks_folder: Path, text: str) -> None:
    load(tmp_path, tasks_folder, [text])
    with pytest.raises(
        InputError, match=r"tasks\.names\.normalize: must be that of tasks\.topic\.normalize, by which the"
    ):
        load(tmp_path, tasks_folder, [text, "tasks.names.normalize.lower=false"])


def test_a_task_changes_nothing_of_the_others(tmp_path: Path, tasks_folder: Path) -> None:
    def identities(recipe: Recipe) -> dict[str, str]:
        plan = Plan(recipe)
        models = {member.name: plan.model(kind, member.name) for kind, member in plan.members()}
        return models | {f"data of {name}": of.data for name, of in plan.tasks.items()}

    before, after = (identities(load(tmp_path, tasks_folder, o)) for o in ([], ["tasks.same.max_length=12"]))
    assert {name for name in before if before[name] != after[name]} == {"same_t", "same_s"}
    # One task alone: the identity of its rows is that of a recipe that has no other.
    single = load_recipe(str(write_single(tmp_path, tasks_folder)))
    assert Plan(single).data == before["data of topic"]
    assert Plan(single).model("teachers", "topic_t") == before["topic_t"]


def write_single(folder: Path, files: Path) -> Path:
    section = re.search(r"  topic:\n(.*?)  same:", TASKS.format(folder=files), re.DOTALL)
    assert section is not None
    models = "\n".join(line for line in MODELS.splitlines() if "same" not in line and "names" not in line)
    path = folder / "single.yaml"
    path.write_text(f"name: r\ndata:\n{section[1]}{models.replace('task: topic, ', '')}\n", encoding="utf-8")
    return path


def test_prepared_by_task(tmp_path: Path, tasks_folder: Path, world) -> None:
    recipe = load(tmp_path, tasks_folder)
    plan = Plan(recipe)
    assert not plan.prepared()
    prepare.run(recipe, world, plan.folder)
    assert plan.prepared()
    found = {path.relative_to(plan.folder.data).as_posix() for path in plan.folder.data.glob("*/encoded/*")}
    assert found == {
        *("topic/encoded/students", "same/encoded/students", "names/encoded/students"),
        "same/encoded/same_t",
    }
    labels = {task: PreparedData.open(plan.folder.of_task(task)).labels for task in ("topic", "same")}
    assert labels == {"topic": ["a", "b", "c"], "same": ["0", "1"]}
    (tmp_path / "moved").mkdir()
    changed = load(tmp_path, tasks_folder, ["tasks.names.vocabulary.min_count=2"])
    assert {name for name, of in Plan(changed).tasks.items() if not of.prepared()} == {"names"}


def test_rows_are_encoded_once_for_all_that_are_given_the_same_tokenizer(
    tmp_path: Path, tasks_folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*SPECIALS, *"球赛队员进攻胜负股票银行利率基金电影王明北京的"]) + "\n"
    )
    given = f"type: bert, hidden: 8, heads: 2, layers: 1, vocabulary: {tmp_path}/vocab.txt"
    counted = "type: bert, hidden: 8, heads: 2, layers: 1, vocabulary_size: 110"
    models = f"""\
teachers:
  - {{name: topic_t, task: topic, model: {{{given}}}, grid: {{seed: [1, 2]}}}}
  - {{name: same_t, task: same, model: {{{given}}}}}
  - {{name: names_t, task: names, model: {{type: tagger, encoder: {{{given}}}}}}}
students:
  - {{name: one, tasks: [topic, same, names], model: {{type: multi_task, encoder: {{{given}}}}}}}
  - {{name: own, task: same, model: {{{counted}}}}}
  - {{name: other, task: same, model: {{{counted}}}}}
  - {{name: borrows, task: same, model: {{type: bert, hidden: 8, heads: 2, layers: 1, tokenizer: one, init: {{from: same_t, layers: [0]}}}}}}
"""
    recipe = load(tmp_path, tasks_folder, models=models)
    plan = Plan(recipe)
    calls: list[str] = []
    monkeypatch.setattr(prepare, "_encode", _counting(prepare._encode, calls))
    prepare.run(recipe, world, plan.folder)
    assert plan.prepared()
    assert sorted(calls) == ["names/names_t", "same/other", "same/own", "same/same_t", "topic/topic_t-seed1"]
    read = {member.name: member.tokenizer for _, member in plan.members()}
    assert read["topic_t-seed2"] == read["one"] == "topic_t-seed1" and read["borrows"] == "same_t"
    assert {task: part.tokenizer for task, part in recipe.students[0].parts.items()}["names"] == "names_t"
    # Rows of another task do not decide what is encoded, but they decide the student of several tasks.
    changed = Plan(load(tmp_path, tasks_folder, ["tasks.same.max_length=12"], models))
    assert changed.tasks["topic"].prepared() and not changed.tasks["same"].prepared()
    assert changed.model("students", "one") != plan.model("students", "one")
    assert changed.model("teachers", "topic_t-seed2") == plan.model("teachers", "topic_t-seed2")


def _counting(encode: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def counting(recipe: Recipe, data: PreparedData, name: str, *others: Any, **keys: Any) -> Any:
        calls.append(f"{data.folder.name}/{name}")
        return encode(recipe, data, name, *others, **keys)

    return counting


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["students.0.task=null"], r"students\.0\.task: must say which .* \(allowed: topic, same, names\)"),
        (["teachers.1.task=sane"], r"teachers\.1\.task: no task 'sane'; did you mean 'same'\? \(allowed: topic, same"),
        (
            ["students.0.teachers=[same_t]"],
            r"teachers: no teacher 'same_t': same_t is of task 'same' \(allowed: topic_t\)",
        ),
        (["students.0.model={type: idcnn}"], r"students\.0\.model\.type: 'idcnn' is not for task 'classification'"),
        (["students.0.metric=f1_macro"], r"students\.0\.metric: 'f1_macro' is not for task 'classification'"),
        (["students.2.losses=[{type: cross_entropy}]"], r"losses\.0 \(cross_entropy\): is not for task 'tagging'"),
        (["students.1.rows=[transfer]"], r"'transfer' needs tasks\.same\.transfer or tasks\.same\.augment"),
        (["knowledge.outputs=[logits]"], r"knowledge\.outputs: lacks 'marginals', which the student names_s"),
        (["knowledge.outputs=[logits, nothing]"], r"knowledge\.outputs"),
        (["search={epochs: [1]}"], r"search: students must have one `task` to be compared"),
        (
            ["students.0.peers=p", "students.1.peers=p"],
            r"students\.1 \(same_s\)\.task: must be that of its peer topic_s",
        ),
    ],
)
def test_refused(tmp_path: Path, tasks_folder: Path, changes: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(tmp_path, tasks_folder, changes)


def test_a_task_of_a_recipe_without_tasks(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: r\ndata: {train: t.jsonl}\nstudents: [{name: s, task: a, model: {type: bilstm}}]\n"
    )
    with pytest.raises(InputError, match=r"students\.0\.task: is for a recipe with `tasks`"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_messages_name_the_keys_of_the_recipe(
    tmp_path: Path, tasks_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, tasks_folder)
    changes = ["tasks.same.valid=nowhere.tsv", "tasks.topic.labels=[a, b]", "tasks.names.columns={text: first}"]
    assert main(["check", str(tmp_path / "r.yaml"), *changes]) == 2
    told = capsys.readouterr().err
    assert "tasks.same.valid: nowhere.tsv" in told
    assert "is not in tasks.topic.labels" in told
    assert "tasks.names.columns.text: 'first' is a name" in told
    assert not re.search(r"(?<!\w)data\.", told)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data.train: none", "tasks.x.train: none"),
        (
            "set data.header: false and data.columns to its names",
            "set tasks.x.header: false and tasks.x.columns to its names",
        ),
        ("runs/data.train: none", "runs/data.train: none"),
        ("data.train.jsonl:3: none", "data.train.jsonl:3: none"),
        ("my-data.train, data.trainer", "my-data.train, data.trainer"),
    ],
)
def test_only_keys_are_renamed(text: str, told: str) -> None:
    section = Data(train=["t.jsonl"])
    assert section.in_own_keys(text) == text
    section.stands_at("tasks.x")
    assert section.in_own_keys(text) == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--task: must say which of the recipe's tasks to answer (allowed: topic, same, names)"),
        (["--task", "tpic"], "--task: no task 'tpic'; did you mean 'topic'? (allowed: topic, same, names)"),
        (["--model", "same_s", "--task", "topic"], "--task: same_s is not for task 'topic' (allowed: same)"),
        (["--model", "same_s"], "--model: same_s: not trained yet"),
        (["--model", "nobody"], "--model: no model 'nobody'"),
    ],
)
def test_predict_says_which_task(
    tmp_path: Path, tasks_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    load(tmp_path, tasks_folder)
    assert main(["predict", str(tmp_path / "r.yaml"), *words]) == 2
    assert told in capsys.readouterr().err

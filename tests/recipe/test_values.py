"""What holds for keys of every section: booleans are no numbers, `~` is the home folder, one task has two spellings."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.__main__ import main
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe import Recipe, dump_recipe, load_recipe
from tests.here import dtrain_here
from tests.processes import run_each

DATA = "{train: [t.jsonl], columns: {text: sentence}}"
REST = """\
teachers: [{name: t, model: {type: bert, vocabulary: vocab.txt}}]
students: [{name: s, model: {type: textcnn}}]
"""


def load(folder: Path, text: str, overrides: list[str] | None = None) -> Recipe:
    (folder / "r.yaml").write_text(f"name: r\n{text}\n{REST}")
    return load_recipe(str(folder / "r.yaml"), overrides)


@pytest.mark.parametrize(
    "change",
    [
        "seed=false",
        "teachers.0.epochs=true",
        "teachers.0.optimizer.lr=true",
        "teachers.0.optimizer.betas=[true, 0.9]",
        "teachers.0.optimizer.modules={bert: true}",
        "students.0.model.widths=[2, true]",
        "students.0.losses=[{type: cross_entropy, label_smoothing: true}]",
        "students.0.losses=[{type: cross_entropy, weight: true}]",
        "students.0.losses=[{type: cross_entropy, weight: {start: true}}]",
        "data.columns.text=true",
        "launch.processes=true",
        "launch.stages.distill.processes=true",
        "knowledge.top_k=true",
        "students.0.sample={count: 2, keys: {epochs: {low: true, high: 3}}}",
    ],
)
def test_a_boolean_is_no_number(tmp_path: Path, change: str) -> None:
    with pytest.raises(InputError, match=r"must be a number( or a text)?, found (true|false)$") as caught:
        load(tmp_path, f"data: {DATA}", [change])
    assert len(caught.value.problems) == 1 and f"override {change!r}" in caught.value.problems[0]


def test_a_grid_of_booleans(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"students\.0\.grid \(member 1\): epochs: must be a number, found true"):
        load(tmp_path, f"data: {DATA}", ["students.0.grid.epochs=[2, true]"])


def test_whole_numbers_may_have_a_point_and_booleans_are_booleans(tmp_path: Path) -> None:
    recipe = load(tmp_path, f"data: {DATA}", ["students.0.epochs=3.0", "data.header=false", "report.latency=off"])
    assert recipe.students[0].epochs == 3 and isinstance(recipe.students[0].epochs, int)
    assert (recipe.data.header, recipe.report.latency) == (False, False)


def test_every_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = """\
output_dir: ~/runs
data: {train: ~/t.jsonl, valid: [~/v.jsonl], labels: ~/labels.txt, vocabulary: {file: ~/vocab}}
pretrain: {model: {type: bert, vocabulary: ~/vocab.txt},
           corpus: {sources: [~/corpus.txt], exclude: [~/not.txt], dictionary: ~/words}}
launch: {accelerate_config: ~/ddp.yaml, stages: {distill: {accelerate_config: ~/one.yaml}}}
"""
    changes = [
        "teachers.0={name: t, from: ~/t}",
        "students.0.model.vectors=~/vectors",
    ]
    recipe = load(tmp_path, text, changes)
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_recipe(recipe))
    assert "~" not in again.read_text()
    assert again.read_text().count("/home/me/") == 13  # the teacher's folder is there once
    assert load_recipe(str(again)) == recipe
    assert Plan(recipe).folder.root == Path("/home/me/runs/r")


def test_a_run_under_home_leaves_no_folder_named_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rows = "".join(f'{{"text": "a{n}", "label": "b{n % 2}"}}\n' for n in range(40))
    Path("home/t.jsonl").write_text(rows)
    Path("r.yaml").write_text(
        "name: r\noutput_dir: ~/runs\ndata: {train: ~/t.jsonl}\nlaunch: {processes: 1}\n"
        "students: [{name: s, model: {type: textcnn}}]\n"
    )
    dtrain_here("prepare", "r.yaml")
    assert (tmp_path / "home" / "runs" / "r" / "data").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "r.yaml"]


# --- tasks ---------------------------------------------------------------------------------------------


def test_one_task_is_the_data_of_a_recipe(tmp_path: Path) -> None:
    short, long = load(tmp_path, f"data: {DATA}"), load(tmp_path, f"tasks: {{tnews: {DATA}}}")
    assert long.data == short.data and long.tasks == {"tnews": short.data}
    assert (long.students, long.teachers, long.knowledge) == (short.students, short.teachers, short.knowledge)
    again = tmp_path / "again.yaml"
    for recipe, key in ((short, "data"), (long, "tasks")):
        again.write_text(dump_recipe(recipe))
        assert load_recipe(str(again)) == recipe
        assert {"data", "tasks"} & set(recipe.model_dump()) == {key}
    changed = load(tmp_path, f"tasks: {{tnews: {DATA}}}", ["tasks.tnews.max_length=64"])
    assert changed.data.max_length == 64


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"r\.yaml:1: data: is missing"),
        ("tasks: {}", r"r\.yaml:2: tasks: .*at least 1"),
        (f"tasks: {{a: {DATA}}}\ndata: {DATA}", r"r\.yaml:2: tasks: not together with data, which is short for one"),
        (f"tasks:\n  a: {DATA}\n  b: {DATA}", r"r\.yaml:5: teachers\.0\.task: must say which .*\(allowed: a, b\)"),
        (f"tasks: {{a b: {DATA}}}", r"r\.yaml:2: tasks\.a b.*must be at most"),
        ("tasks:\n  a:\n    trian: [t.jsonl]", r"r\.yaml:4: tasks\.a\.trian: unknown key; did you mean 'train'"),
        (f"tasks: [{DATA}]", r"r\.yaml:2: tasks: "),
    ],
)
def test_what_is_no_task(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(tmp_path, text)


# --- the hub -------------------------------------------------------------------------------------------


# A command, and what it told the network and the clock: connections begun, and seconds slept before the next.
ASKED = """
import socket, sys, time
connect, sleep, begun, slept = socket.socket.connect, time.sleep, [], []
socket.socket.connect = lambda self, place: (begun.append(place), connect(self, place))[1]
time.sleep = lambda seconds: (slept.append(seconds), sleep(seconds))[1]
from dtrain.__main__ import main
code = main({words})
print(len(begun), sum(slept))
sys.exit(code)
"""


def test_a_hub_out_of_reach_is_asked_once(tmp_path: Path) -> None:
    """Nobody listens at port 9: the libraries would try each file six times, for 26 s."""
    (tmp_path / "t.jsonl").write_text("".join(f'{{"sentence": "a{n}", "label": "b{n % 2}"}}\n' for n in range(40)))
    data = f"{{train: [{tmp_path}/t.jsonl], columns: {{text: sentence}}}}"
    load(tmp_path, f"output_dir: {tmp_path}/runs\ndata: {data}")
    prepare = ["prepare", str(tmp_path / "r.yaml")]
    each = [
        [*prepare, "teachers.0.model={type: bert, pretrained: nobody/x}"],
        [*prepare, "teachers.0.model={type: textcnn}", "data.valid=[hub:nobody/x/v]"],
    ]
    codes = [ASKED.format(words=words) for words in each]
    hub = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    for done in run_each(codes, "import dtrain.stages.prepare, datasets, transformers", tmp_path, **hub):
        assert done.returncode == 2, done.stderr
        assert [line.startswith("dtrain: ") for line in done.stderr.splitlines()] == [True], done.stderr
        assert "nobody/x" in done.stderr and "Retrying" not in done.stderr
        connections, seconds = map(float, done.stdout.split())
        assert connections == 1 and seconds < 2
    assert not (tmp_path / "runs").exists()


def test_recipes_are_refused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(f"name: r\ntasks: {{corpus: {DATA}, b: {DATA}}}\n")
    assert main(["check", str(tmp_path / "r.yaml")]) == 2
    assert "tasks.corpus: is what the folder" in capsys.readouterr().err

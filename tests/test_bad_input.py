"""Bad input: exit code 2, one line a problem that names file and line or key, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dtrain.__main__ import main

RECIPE = """\
name: bad
output_dir: {folder}/runs
data:
  train: {folder}/train.jsonl
  valid: {folder}/valid.jsonl
  columns: {{text: text, label: label}}
teachers:
  - name: cnn
    model: {{type: textcnn, embedding: 8, filters: 4}}
students:
  - name: lstm
    model: {{type: bilstm, embedding: 8, hidden: 8}}
    losses: [{{type: soft_targets, temperature: 2.0}}]
launch: {{processes: 1}}
"""
ROWS = [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(12)]


def write_rows(path: Path, rows: list[object]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_rows(tmp_path / "train.jsonl", ROWS)
    write_rows(tmp_path / "valid.jsonl", ROWS[:4])
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return path


def check_refused(error: str, code: int, folder: Path, *expected: str) -> None:
    assert code == 2, error
    assert "Traceback" not in error
    for text in expected:
        assert text in error, f"{text!r} is not in:\n{error}"
    for line in error.strip().splitlines():
        assert line.startswith("dtrain: "), line
    assert not (folder / "runs").exists()
    assert not list(folder.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("{type: bert, pretrained: FOLDER}", "model.pretrained"),
        ("{type: bert_cnn, encoder: {type: bert, pretrained: FOLDER}}", "model.encoder.pretrained"),
        ("{type: multi_exit, exits: [1], encoder: {type: bert, pretrained: FOLDER}}", "model.encoder.pretrained"),
    ],
)
def test_a_pretrained_folder_is_looked_for(
    model: str, key: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for place, problem in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "holds no config.json")):
        code = main(["check", str(recipe), f"teachers.cnn.model={model.replace('FOLDER', str(place))}"])
        check_refused(capsys.readouterr().err, code, tmp_path, f"cnn: {key}: ", problem, str(place))


def test_vectors_of_another_width_are_seen_at_once(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.txt").write_text("a 1 2 3\n")
    code = main(["check", str(recipe), f"teachers.cnn.model.vectors={tmp_path}/v.txt"])
    what = f"cnn: model.vectors: {tmp_path}/v.txt:1: 3 numbers, but model.embedding is "
    check_refused(capsys.readouterr().err, code, tmp_path, what)


def test_the_recipe_itself_is_good(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--resolved"]) == 0
    assert "name: bad" in capsys.readouterr().out


OVERRIDES = [
    ("nme=x", "nme", "did you mean 'name'"),
    ("seed=-1", "seed", "greater than or equal to 0"),
    ("seed=many", "seed", "'many'"),
    ("name=a/b", "name", "letters, digits"),
    ("name=../up", "name", "letters, digits"),
    ("teachers.0.name=../up", "teachers.0.name", "letters, digits"),
    ("students.0.name=a/b", "students.0.name", "letters, digits"),
    ("data.task=tagg", "data.task", "'classification', 'pairs', 'regression', 'multi_label', 'tagging' or 'seq2seq'"),
    ("data.task=pairs", "data.columns.text_b", "second text"),
    ("data.columns.label=text", "data.columns", "two roles"),
    ("data.split.valid=1", "data.split.valid", "less than 1"),
    ("teachers.0.optimizer.betas=[1.0, 1.0]", "teachers.0.optimizer.betas.0", "less than 1"),
    ("teachers.0.model.filters=100000000000", "teachers.0.model.filters", "less than or equal to 65536"),
    ("report.splits=[test]", "report.splits", "no test rows"),
    ("launch={processes: 2, accelerate_config: ds_configs/none.yaml}", "launch.accelerate_config", "no config"),
    ("data.columns.text_b=x", "data.columns.text_b", "only for task 'pairs'"),
    ("data.train=", "data.train", "no file given"),
    ("data.train=missing.jsonl", "missing.jsonl", "no such file"),
    ("data.valid=missing.jsonl", "missing.jsonl", "no such file"),
    ("data.columns.text=sentence", "sentence", "train.jsonl:1"),
    ("data.columns.label=lable", "lable", "train.jsonl:1"),
    ("data.max_length=2", "data.max_length", "greater than or equal to 4"),
    ("data.split={valid: 0.6, test: 0.5}", "data.split", "leave training rows"),
    ("data.labels=[a]", "data.labels", "at least 2"),
    ("data.labels=[a, a]", "data.labels", "given twice"),
    ("data.labels=[a, c]", "train.jsonl:2", "'b'"),
    ("data.labels=nowhere.txt", "nowhere.txt", "no such file"),
    ("data.vocabulary.file=none.txt", "none.txt", "no such file"),
    ("data.augment={p_mask: 0, p_ng: 0}", "data.augment", "no row would be made up"),
    ("data.vocabulary.min_count=0", "data.vocabulary.min_count", "greater than 0"),
    ("data.normalize.simplfy=true", "data.normalize.simplfy", "did you mean 'simplify'"),
    ("data.format=xml", "data.format", "'jsonl'"),
    ("teachers.0.model.type=birt", "teachers.0.model.type", "did you mean 'bert'"),
    ("teachers.0.model={type: bert, hidden: 16, heads: 3}", "teachers.0.model.heads", "do not divide"),
    ("teachers.0.model.widths=[0]", "teachers.0.model.widths.0", "greater than 0"),
    ("teachers.cnn.epochs=0", "teachers.0.epochs", "greater than 0"),
    ("teachers.cnn.epochs=1.5", "teachers.0.epochs", "1.5"),
    ("teachers.rnn.epochs=1", "teachers has no member 'rnn'", "allowed: cnn"),
    ("teachers.0.optimizer.type=adam", "teachers.0.optimizer.type", "did you mean 'adamw'"),
    ("teachers.0.optimizer.lr=0", "teachers.0.optimizer.lr", "greater than 0"),
    ("teachers.0.optimizer.lr=.nan", "teachers.0.optimizer.lr", "finite number"),
    ("teachers.0.precision=fp8", "teachers.0.precision", "'bf16'"),
    ("teachers.0.model={type: bert, pretrained: /no/such/folder}", "model.pretrained", "/no/such/folder"),
    ("students.0.teachers=[bnn]", "students.0.teachers", "did you mean 'cnn'"),
    ("students.0.teachers=[]", "students.0.losses.0", "needs a teacher"),
    ("students.0.rows=[transfer]", "students.0.rows", "needs data.transfer"),
    ("students.0.losses.0.type=soft_target", "students.0.losses.0.type", "did you mean 'soft_targets'"),
    ("students.0.losses.0.temperature=0", "students.0.losses.0.temperature", "greater than 0"),
    ("students.0.losses.0.temperatur=1", "students.0.losses.0.temperatur", "did you mean 'temperature'"),
    ("students.0.losses.0.weight=-1", "students.0.losses.0.weight", "greater than or equal to 0"),
    ("students.0.grid={optimizer.lrr: [1]}", "students.0.grid", "did you mean 'lr'"),
    ("students.0.grid={seed: []}", "students.0.grid.seed", "at least 1 item"),
    ("students.0.batch_size=0", "students.0.batch_size", "greater than 0"),
    ("students.0={name: cnn2}", "students.0.model", "is missing"),
    ("launch.processes=0", "launch.processes", "greater than 0"),
    ("launch={processes: 2, accelerate_config: ddb}", "launch.accelerate_config", "'ddb'"),
    ("launch.stages={distil: {processes: 1}}", "launch.stages.distil", "did you mean 'distill'"),
    ("report.splits=[train]", "report.splits.0", "'valid' or 'test'"),
    ("no-equals-sign", "no-equals-sign", "key.path=value"),
    ("data.columns=[", "data.columns=[", "not valid YAML"),
    ("teachers." + "9" * 5000 + ".epochs=1", "teachers has no member", "allowed: cnn"),
]


@pytest.mark.parametrize(("override", "place", "reason"), OVERRIDES, ids=[o[0][:60] for o in OVERRIDES])
def test_recipe_key(recipe: Path, capsys: pytest.CaptureFixture[str], override: str, place: str, reason: str) -> None:
    if "=" in override:
        arguments = ["run", str(recipe), override]
        code = main(arguments)
    else:
        from dtrain.errors import InputError
        from dtrain.recipe import load_recipe

        with pytest.raises(InputError) as caught:
            load_recipe(str(recipe), [override])
        assert place in str(caught.value)
        assert reason in str(caught.value)
        return
    check_refused(capsys.readouterr().err, code, recipe.parent, place, reason)


FILES: list[tuple[str, str, bytes, list[str]]] = [
    ("recipe holds itself", "recipe.yaml", b"name: x\ndata: &d {train: *d}\n", ["recipe.yaml:1", "alias contains itself"]),
    ("recipe is empty", "recipe.yaml", b"", ["recipe.yaml:1", "empty"]),
    ("recipe is a list", "recipe.yaml", b"- a\n", ["recipe.yaml:1", "a mapping of keys"]),
    ("recipe is no YAML", "recipe.yaml", b"name: x\ndata: {train: [\n", ["recipe.yaml:3", "not valid YAML"]),
    ("recipe with a key twice", "recipe.yaml", b"name: x\nseed: 1\nseed: 2\n", ["recipe.yaml:3", "given twice"]),
    ("recipe with broken UTF-8", "recipe.yaml", b"name: x\n# \xff\n", ["recipe.yaml:2", "UTF-8"]),
    ("recipe with a Python tag", "recipe.yaml", b"name: !!python/object:os.system {}\n", ["recipe.yaml:1", "not valid YAML"]),
    ("recipe without data", "recipe.yaml", b"name: x\n", ["data", "is missing"]),
    ("train is empty", "train.jsonl", b"", ["train.jsonl", "empty"]),
    ("train has broken UTF-8", "train.jsonl", b'{"text": "a", "label": "a"}\n{"text": "\xff", "label": "b"}\n', ["train.jsonl:2", "UTF-8"]),
    ("train is no JSON", "train.jsonl", b'{"text": "a", "label": "a"}\n{"text": "a", \n', ["train.jsonl:2", "JSON"]),
    ("a row is a list", "train.jsonl", b'{"text": "a", "label": "a"}\n["a", "b"]\n', ["train.jsonl:2", "object"]),
    ("a row lacks its text", "train.jsonl", b'{"text": "a", "label": "a"}\n{"label": "b"}\n', ["train.jsonl:2", "text"]),
    ("a text is a number", "train.jsonl", b'{"text": "a", "label": "a"}\n{"text": 3, "label": "b"}\n', ["train.jsonl:2", "text"]),
    ("a row lacks its label", "train.jsonl", b'{"text": "a", "label": "a"}\n{"text": "b"}\n', ["train.jsonl:2", "label"]),
    ("half a surrogate pair", "train.jsonl", b'{"text": "a", "label": "a"}\n{"text": "\\ud800", "label": "b"}\n', ["train.jsonl:2", "surrogate"]),
    ("train has one label", "train.jsonl", b'{"text": "a", "label": "a"}\n{"text": "b", "label": "a"}\n', ["label", "at least 2"]),
    ("valid has an unseen label", "valid.jsonl", b'{"text": "a", "label": "a"}\n{"text": "b", "label": "z"}\n', ["valid.jsonl:2", "'z'", "does not occur in training"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), [f[1:] for f in FILES], ids=[f[0] for f in FILES])
def test_file(recipe: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, expected: list[str]) -> None:
    (recipe.parent / name).write_bytes(content)
    code = main(["run", str(recipe)])
    check_refused(capsys.readouterr().err, code, recipe.parent, *expected)


def test_duplicate_ids(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(recipe.parent / "train.jsonl", [{**row, "key": n % 11} for n, row in enumerate(ROWS)])
    write_rows(recipe.parent / "valid.jsonl", [{**row, "key": f"v{n}"} for n, row in enumerate(ROWS[:4])])
    code = main(["run", str(recipe), "data.columns.id=key"])
    check_refused(capsys.readouterr().err, code, recipe.parent, "train.jsonl:12", "train.jsonl:1")


@pytest.mark.parametrize("stage", ["finetune", "precompute", "distill", "evaluate"])
def test_a_stage_without_the_ones_before_it(recipe: Path, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    code = main([stage, str(recipe)])
    check_refused(capsys.readouterr().err, code, recipe.parent, stage, "`prepare` is not complete for this recipe")


@pytest.mark.parametrize("arguments", [["run", "no/such.yaml"], ["run", "quickstrt"], ["check", "."]])
def test_no_such_recipe(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(arguments)
    check_refused(capsys.readouterr().err, code, tmp_path, arguments[1])


def test_a_refused_run_overwrites_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = recipe.parent / "runs" / "bad" / "recipe.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert main(["run", str(recipe), "data.max_length=2"]) == 2
    assert kept.read_text() == "mine"
    assert list(kept.parent.iterdir()) == [kept]


def test_output_dir_is_a_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = recipe.parent / "blocked"
    blocked.write_text("a file")
    assert main(["run", str(recipe), f"output_dir={blocked}"]) == 2
    assert "output_dir" in capsys.readouterr().err


def test_stages_of_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", str(recipe), "--stages", "prepare,distil"])
    check_refused(capsys.readouterr().err, code, recipe.parent, "--stages", "'distil'", "distill")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["recipes", "seed=1"], "argument copy: invalid choice: 'seed=1' (choose from "),
        (["run", "x.yaml", "--sede"], "unrecognized arguments: --sede"),
    ],
)
def test_words_that_mean_nothing(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom dtrain.__main__ import main\n"
        "try:\n    main(['-h'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


@pytest.mark.distributed
@pytest.mark.parametrize("override", ["seed=-1", "data.labels=[a, c]"])
def test_told_once_under_two_processes(recipe: Path, override: str) -> None:
    """The launcher adds its own report and turns every exit code into 1; the problem itself is reported once."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", "0", "-m", "dtrain", "prepare", str(recipe), override]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=os.environ)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("dtrain: ")]
    assert len(lines) == 1, done.stderr
    assert len(set(lines)) == len(lines)
    assert not (recipe.parent / "runs").exists()


@pytest.mark.distributed
def test_run_under_two_processes_ends_with_two(recipe: Path) -> None:
    """`dtrain run` starts the launcher itself and keeps the workers' exit code, without a traceback."""
    command = [sys.executable, "-m", "dtrain", "run", str(recipe), "launch.processes=2"]
    # fp16 on a CPU is detected by the workers.
    done = subprocess.run([*command, "teachers.0.precision=fp16"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("fp16 needs a GPU") == 1
    assert "Traceback" not in done.stderr


def test_too_few_rows_to_cut_validation_rows_from(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(recipe.parent / "train.jsonl", ROWS[:2])
    code = main(["run", str(recipe), "data.valid=[]"])
    check_refused(capsys.readouterr().err, code, recipe.parent, "data.split", "2 training rows", "name data.valid")


def test_stages_that_lack_one_between_them(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", str(recipe), "--stages", "prepare,distill", "--here"])
    check_refused(capsys.readouterr().err, code, recipe.parent, "distill", "`precompute` is not complete")


def test_report_before_anything(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused_code = main(["report", str(recipe)])
    check_refused(capsys.readouterr().err, check_refused_code, recipe.parent, "report", "`prepare` is not complete")

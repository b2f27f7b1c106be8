"""The registry of stages, and the scripts that are based on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import dtrain
import dtrain.stages
from dtrain.__main__ import main
from dtrain.recipe import load_recipe
from dtrain.stages import Job, Stage, find_stage, job_lines, option, register, run_names, stages
from tests.here import dtrain_here

ROOT = Path(__file__).parent.parent
RECIPE = """\
name: tiny
output_dir: {folder}/runs
data: {{train: {folder}/train.jsonl, valid: {folder}/train.jsonl}}
launch: {{processes: 1}}
teachers: [{{name: cnn, model: {{type: textcnn}}}}]
students: [{{name: lstm, model: {{type: bilstm}}}}]
"""
PRETRAIN = "pretrain: {{model: {{type: bert}}, corpus: {{sources: {folder}/train.jsonl}}}}\n"
PART_OF_RUN = ["pretrain", "prepare", "finetune", "precompute", "distill", "evaluate", "report"]


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    rows = "".join(f'{{"text": "a{n}", "label": "b{n % 2}"}}\n' for n in range(40))
    (folder / "train.jsonl").write_text(rows)
    (folder / "recipe.yaml").write_text(text.format(folder=folder))
    return folder / "recipe.yaml"


@pytest.mark.parametrize(("text", "first"), [(RECIPE, "prepare"), (RECIPE + PRETRAIN, "pretrain")])
def test_the_stages_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, first: str) -> None:
    recipe = write_recipe(tmp_path, text)
    assert main(["stages", str(recipe)]) == 0
    assert capsys.readouterr().out.split() == PART_OF_RUN[PART_OF_RUN.index(first) :]


@pytest.mark.parametrize(("text", "first"), [(RECIPE, "prepare"), (RECIPE + PRETRAIN, "pretrain")])
def test_the_local_script_starts_each_stage_of_the_recipe(tmp_path: Path, text: str, first: str) -> None:
    """Run `launch/local.sh` in a folder of its own, with a fake `accelerate` that records its arguments."""
    recipe, started = write_recipe(tmp_path, text), tmp_path / "started"
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "local.sh", tmp_path / "launch")
    (tmp_path / "accelerate_configs").mkdir()
    (tmp_path / "accelerate_configs" / "ddp.yaml").touch()
    python = tmp_path / "python"
    python.write_text(
        f'#!/usr/bin/env bash\n[[ $2 == dtrain ]] && exec "{sys.executable}" "$@"\n'
        f'while [[ $1 != dtrain ]]; do shift; done; echo "${{@:2}}" >>{started}\n'
    )
    python.chmod(0o755)
    (tmp_path / "launch" / "install.sh").write_text(f"root={tmp_path}\npython={python}\ninstall_dtrain() {{ :; }}\n")
    words = ["bash", "launch/local.sh", str(recipe), "seed=7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(words, cwd=tmp_path, check=True, env=environment)
    expected = PART_OF_RUN[PART_OF_RUN.index(first) :]
    assert started.read_text().splitlines() == [f"{stage} {recipe} seed=7" for stage in expected]
    broken = subprocess.run([*words, "sede=7"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert broken.returncode == 2 and "did you mean 'seed'" in broken.stderr


def test_every_stage_has_a_page_that_runs_it() -> None:
    for stage in stages():
        assert callable(stage.load().run)
        assert set(stage.needs) <= set(run_names()[: run_names().index(stage.name)] if stage.job else run_names())


def test_a_stage_from_outside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes one module and one entry; the command line, the recipe, `dtrain run` and the cluster's jobs then include
    it.
    """
    monkeypatch.setattr(dtrain.stages, "_STAGES", list(stages()))
    page = types.ModuleType("counting_stage")

    def run(recipe: object, world: object, folder: object, *, times: int = 1) -> None:
        (tmp_path / "counted").write_text(f"{times} x {recipe.name}")  # type: ignore[attr-defined]

    page.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting_stage", page)
    stage = Stage(
        "count",
        "count something",
        done=lambda plan: (tmp_path / "counted").exists(),
        job=Job("counting", nodes="all"),
        needs=("prepare",),
        options=(option("--times", type=int, default=1, help="how often"),),
        page="counting_stage",
    )
    register(stage, after="prepare")
    with pytest.raises(ValueError, match="registered twice"):
        register(stage, after="report")
    file = write_recipe(tmp_path)
    recipe = load_recipe(str(file), ["launch.stages.count.processes=3"])
    assert recipe.launch.stages["count"].processes == 3
    assert job_lines(recipe)[:3] == [
        "prepare prepare one cpus",
        "counting count all gpus",
        "finetune finetune all gpus",
    ]
    with pytest.raises(SystemExit):
        main(["count", "-h"])
    assert "--times" in capsys.readouterr().out
    assert main(["count", str(file), "--times", "4"]) == 2  # `prepare` has not been run
    assert "`prepare` is not complete" in capsys.readouterr().err
    dtrain_here("prepare", file)
    assert main(["count", str(file), "--times", "4"]) == 0
    assert (tmp_path / "counted").read_text() == "4 x tiny"
    capsys.readouterr()
    assert main(["run", str(file), "--stages", "prepare,count"]) == 0
    assert "every stage is complete (prepare, count)" in capsys.readouterr().out


def test_unknown_stages() -> None:
    with pytest.raises(KeyError):
        find_stage("distil")


def test_a_run_of_an_older_version_is_done_again_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "tiny"
    file = write_recipe(tmp_path)
    dtrain_here("prepare", file)
    assert "was made by" not in capsys.readouterr().out
    made = run / "data" / "rows" / "done.json"
    record = json.loads(made.read_text())
    made.write_text(json.dumps(record | {"fingerprint": "one of 0.1"}))
    versions = json.loads((run / "versions.json").read_text())
    assert versions["dtrain"] == dtrain.__version__
    (run / "versions.json").write_text(json.dumps(versions | {"dtrain": "0.1.0"}))
    dtrain_here("prepare", file)
    again = capsys.readouterr().out
    assert f"{run}: was made by dtrain 0.1.0" in again and "prepare: train 40" in again
    assert json.loads(made.read_text()) == record
    dtrain_here("prepare", file)
    third = capsys.readouterr().out
    assert "was made by" not in third and "complete, nothing to do" in third

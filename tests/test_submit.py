"""`dtrain submit` without a cluster: what it would submit, what it refuses, and the same plan on this machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dtrain.__main__ import main
from dtrain.errors import InputError
from dtrain.recipe import load_recipe
from dtrain.students.groups import Group, parse_group
from dtrain.submit import Cluster, fill, submit, templates

RECIPE = """\
name: tiny
output_dir: {folder}/runs
data: {{train: {folder}/train.jsonl}}
teachers: [{{name: cnn, model: {{type: textcnn}}}}]
students: [{{name: lstm, model: {{type: bilstm}}, grid: {{seed: [1, 2, 3]}}}}]
"""
ASKED = {"partition": "gpu", "nodes": 2, "gpus": 8, "cpus": 16, "time": "1-02:00:00", "groups": 2, "requeues": 3}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    return tmp_path / "recipe.yaml"


def test_a_dry_run_prints_the_jobs_and_writes_nothing(recipe_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert submit(load_recipe(str(recipe_file), []), Cluster(**ASKED), dry_run=True, local=False) == 0
    jobs = [shlex.split(line) for line in capfd.readouterr().out.splitlines()]
    assert [job[0] for job in jobs] == ["sbatch"] * 5
    options = [dict(re.findall(r"^--([\w-]+)=(.*)$", "\n".join(job), re.M)) for job in jobs]
    assert [o["job-name"] for o in options] == ["prepare", "finetune", "precompute", "distill", "report"]
    assert [o["nodes"] for o in options] == ["1", "2", "2", "1", "1"]
    assert [o.get("gpus-per-node") for o in options] == [None, "8", "8", "8", "8"]
    assert [o.get("dependency") for o in options] == [
        None,
        *(f"afterok:ID_OF_{name}" for name in ("PREPARE", "FINETUNE", "PRECOMPUTE", "DISTILL")),
    ]
    assert all(o["partition"] == "gpu" and o["time"] == "1-02:00:00" and o["cpus-per-task"] == "16" for o in options)
    assert all(o.get("kill-on-invalid-dep") == "yes" for o in options[1:])
    assert options[3]["array"] == "0-1"
    assert [job[-2] for job in jobs] == ["prepare", "finetune", "precompute", "distill", "evaluate,report"]
    assert not (recipe_file.parent / "runs").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nodes": 0}, "--nodes: 0 (allowed: 1 or more)"),
        ({"gpus": -1}, "--gpus: -1"),
        ({"time": "soon"}, "--time: soon (allowed: minutes, HH:MM:SS or D-HH:MM:SS)"),
        ({"partition": "a; rm -rf"}, "--partition: 'a; rm -rf'"),
    ],
)
def test_what_cannot_be_asked_of_a_cluster(recipe_file: Path, change: dict[str, object], told: str) -> None:
    with pytest.raises(InputError) as caught:
        submit(load_recipe(str(recipe_file), []), Cluster(**ASKED | change), dry_run=True, local=False)
    assert told in str(caught.value)


SEARCH = "search: {epochs: [1]}\n"


def test_a_search_is_one_group_of_all_students(recipe_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe_file.write_text(recipe_file.read_text() + SEARCH)
    recipe = load_recipe(str(recipe_file), [])
    assert submit(recipe, Cluster(**ASKED | {"groups": 1}), dry_run=True, local=False) == 0
    assert "--array=0-0 " in capfd.readouterr().out
    assert Group(0, 1).own(recipe) == recipe  # as the job requests it
    with pytest.raises(InputError, match=r"--groups: 2, but the recipe's `search` compares all students"):
        submit(recipe, Cluster(**ASKED), dry_run=True, local=False)


def test_without_slurm(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="there is no sbatch here"):
        submit(load_recipe(str(recipe_file), []), Cluster(**ASKED), dry_run=False, local=False)
    assert not (recipe_file.parent / "runs").exists()


@pytest.mark.parametrize(("change", "code"), [("students.0.epochs=0", 2), ("students.0.epochs=3", 0)])
def test_nothing_is_queued_for_a_bad_recipe(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, change: str, code: int
) -> None:
    """Neither by the script itself nor by the command, which checks before it writes the script."""
    folder = recipe_file.parent
    queued = folder / "queued"
    (folder / "sbatch").write_text(f"#!/usr/bin/env bash\necho 7\necho $1 >>{shlex.quote(str(queued))}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    rows = "".join(f'{{"text": "a{n}", "label": "b{n % 2}"}}\n' for n in range(40))
    (folder / "train.jsonl").write_text(rows)
    script = ["bash", str(templates() / "pipeline.sh"), str(recipe_file), change]
    by_script = subprocess.run(script, cwd=folder, capture_output=True, text=True)
    assert by_script.returncode == code, by_script.stderr
    assert queued.exists() == (code == 0)
    queued.unlink(missing_ok=True)
    assert main(["submit", str(recipe_file), change]) == code
    assert queued.exists() == (code == 0)
    assert (folder / "runs").exists() == (code == 0)
    if code:
        assert by_script.stderr.startswith("dtrain: ") and "epochs" in by_script.stderr


def test_settings_keep_their_comments_and_are_quoted() -> None:
    script = fill(
        "nodes=1             # for finetune\nrun=                # the run folder\n", {"nodes": "4", "run": "a b\\1"}
    )
    assert script == "nodes=4             # for finetune\nrun='a b\\1'                # the run folder\n"


@pytest.mark.parametrize("name", ["stage.sbatch", "pipeline.sh"])
def test_scripts_are_short_and_well_formed(name: str) -> None:
    path = templates() / name
    assert len(path.read_text().splitlines()) < 80
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_groups_share_out_every_student(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file), [])
    own = [[s.name for s in Group(number, 2).own(recipe).students] for number in range(2)]
    assert own == [["lstm-seed1", "lstm-seed3"], ["lstm-seed2"]]
    assert parse_group("1/2") == Group(1, 2)
    for wrong in ("2/2", "-1/2", "1", "1/0", "a/b"):
        with pytest.raises(InputError, match="--group"):
            parse_group(wrong)

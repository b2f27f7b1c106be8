"""The requested ranks with real launchers: all meet, fewer meet, or some never arrive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.forty_rows import write
from tests.processes import free_port
from tests.processes import start_for_real as start

RECIPE = {
    "name": "tiny",
    "data": {"train": "train.jsonl"},
    "teachers": [{"name": "cnn", "model": {"type": "textcnn", "embedding": 4, "filters": 2}, "epochs": 1}],
    "students": [{"name": "lstm", "model": {"type": "bilstm", "embedding": 4, "hidden": 4}, "grid": {"seed": [1, 2]}}],
    "launch": {"processes": 1},
    "report": {"latency": False, "splits": ["valid"]},
}
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
DTRAIN = [sys.executable, "-m", "dtrain"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, RECIPE)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, err


def test_accelerate_on_the_cpu_of_two_machines_is_refused(folder: Path) -> None:
    """It would start one process on each machine, which never connects to the others, and end with 0 after training."""
    machine = ["--cpu", "--num_machines", "2", "--machine_rank", "0", "--main_process_ip", "127.0.0.1"]
    words = [*ACCELERATE, *machine, "--main_process_port", "29533", "-m", "dtrain", "finetune", "recipe.yaml"]
    code, _, err = ended(start(words, folder))
    assert code != 0
    assert "asked for 2 processes, but a world of 1 formed on each of 2 machines" in err
    assert "accelerate launch --config_file accelerate_configs/cpu.yaml --num_processes 2 --num_machines 2" in err
    assert not (folder / "runs").exists()


def test_two_machines_form_one_world(folder: Path) -> None:
    words = [*DTRAIN, "run", "recipe.yaml", "--stages", "prepare,finetune", "--machines", "2"]
    words += ["--rendezvous", f"127.0.0.1:{free_port() % 30000 + 20000}"]
    machines = [start([*words, "--machine-rank", str(rank)], folder) for rank in (1, 0)]
    ends = [ended(machine) for machine in machines]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "2 ranks" in ends[1][1]
    assert ends[0][1] == ""  # reported once
    assert (folder / "runs/tiny/teachers/cnn/model.safetensors").exists()


def test_a_machine_that_does_not_come_is_named(folder: Path) -> None:
    words = [*DTRAIN, "run", "recipe.yaml", "launch.timeout=2", "--machines", "3"]
    words += ["--rendezvous", f"127.0.0.1:{free_port() % 30000 + 20000}"]
    code, _, err = ended(start(words, folder))
    assert code == 1
    assert err == "dtrain: machines 1, 2 of 3 did not arrive within 2 s\n"


def test_a_rank_that_does_not_come_is_named(folder: Path) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    words = [*DTRAIN, "prepare", "recipe.yaml", "launch.timeout=3"]
    code, _, err = ended(start(words, folder, **place, MASTER_PORT=str(free_port())))
    assert code == 1
    assert err == "dtrain: rank 1 of 2 did not arrive within 3 s\n"
    assert not (folder / "runs").exists()


def test_the_plan_of_a_cluster_on_this_machine(folder: Path) -> None:
    """`dtrain submit --local` runs the pipeline script that SLURM would get, stage by stage, on this machine."""
    code, out, err = ended(start([*DTRAIN, "submit", "recipe.yaml", "--local", "--groups", "2"], folder))
    assert code == 0, err
    run = folder / "runs/tiny"
    assert {path.name for path in (run / "slurm").iterdir()} == {"recipe.yaml", "stage.sbatch", "pipeline.sh"}
    for stage in ("prepare", "finetune", "precompute", "distill", "evaluate", "report"):
        assert f"\n{stage}: done in" in f"\n{out}"
    assert (run / "report/results.json").exists()
    code, out, _ = ended(start([*DTRAIN, "run", "recipe.yaml"], folder))
    assert code == 0
    assert "nothing to do, every stage is complete" in out

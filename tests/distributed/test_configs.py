"""Plain `accelerate launch` with the files of accelerate_configs/ starts two ranks that train a teacher: from one
launcher, or from two by the command in the head of the file. (test_sharded_teachers tests the two files that are left
out here.)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dtrain.runtime.sharding import configs_folder
from tests.distributed.forty_rows import write
from tests.processes import start

FOLDER = configs_folder("accelerate_configs")
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
TWO_MACHINES = ("ddp", "fsdp2", "zero2", "zero3")
ELSEWHERE = ("zero1", "zero2_offload")
RECIPE = {
    "name": "tiny",
    "data": {"train": "train.jsonl", "split": {"valid": 0.2}},
    "teachers": [
        {
            "name": "cnn",
            "model": {"type": "textcnn", "embedding": 4, "filters": 2},
            "epochs": 1,
            "batch_size": 8,
            "optimizer": {"type": "lamb", "lr": 0.01},
        }
    ],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands work as they are written, with the configs, `my.yaml` with its data prepared, and
    a `scontrol`.
    """
    folder = tmp_path_factory.mktemp("configs")
    (folder / "accelerate_configs").symlink_to(FOLDER)
    # It is written before any node starts: a script that is rewritten while another node reads it prints no address.
    scontrol = folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho 127.0.0.1\n")
    scontrol.chmod(0o755)
    write(folder, RECIPE, "my.yaml")
    subprocess.run([sys.executable, "-m", "dtrain", "prepare", "my.yaml"], check=True, cwd=folder, timeout=300)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for one launch."""
    shutil.copytree(prepared, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def documented(name: str) -> str:
    """The command for several nodes in the head of a config."""
    head = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return re.search(r"^#   (accelerate launch(?:.*\\\n)*.*)", head, re.MULTILINE)[1].replace("\n#", "\n")  # type: ignore[index]


def a_node(rank: int, folder: Path, job: int) -> dict[str, str]:
    """The variables that SLURM sets on one of two nodes with one process each; `bin/scontrol` says that this machine is
    the first.
    """
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    both = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    return os.environ | NO_GPU | both | {"SLURM_NODEID": str(rank), "PATH": path}


def free_job() -> int:
    """A job id whose port is free."""
    for job in range(os.getpid(), os.getpid() + 1000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", 20000 + job % 10000)):
                return job
    raise AssertionError("no free port")


def check_trained(folder: Path, out: str, precision: str) -> None:
    assert f"rows, {precision}, 2 ranks\n" in out, out
    metrics = json.loads((folder / "runs/tiny/teachers/cnn/metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 4


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in TWO_MACHINES + ELSEWHERE])
def test_it_starts_two_ranks(folder: Path, name: str) -> None:
    words = ["-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    words += ["--config_file", f"accelerate_configs/{name}.yaml", "-m", "dtrain", "finetune", "my.yaml"]
    process = start(words, folder, **NO_GPU)
    out, err = process.communicate(timeout=300)
    if name == "ddp_fp16":
        told = [line for line in err.splitlines() if line.startswith("dtrain: ")]
        assert process.returncode != 0
        assert told == ["dtrain: teachers.cnn.precision: fp16 needs a GPU (found none; allowed here: fp32, bf16, auto)"]
        assert not (folder / "runs/tiny/teachers").exists()
        return
    assert process.returncode == 0, err
    check_trained(folder, out, "bf16" if name == "ddp_bf16" else "fp32")


@pytest.mark.parametrize("name", TWO_MACHINES)
def test_its_command_for_several_nodes_starts_one_world(folder: Path, name: str) -> None:
    job, pipe = free_job(), subprocess.PIPE
    nodes = []
    for rank in (1, 0):
        words = ["bash", "-c", documented(name)]
        environment = a_node(rank, folder, job)
        nodes.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=environment))
    try:
        ends = []
        for node in nodes:
            # Checked before waiting for the next node, which would wait for ever for one that has failed.
            ends.append(node.communicate(timeout=300))
            assert node.returncode == 0, ends
    finally:
        for node in nodes:
            node.kill()
    check_trained(folder, ends[1][0], "fp32")
    assert "teacher cnn" not in ends[0][0]  # reported once


def test_no_command_for_several_nodes_names_another_file_or_launcher() -> None:
    for name in CONFIGS:
        assert documented(name).replace(f"/{name}.yaml", "/ddp.yaml") == documented("ddp")
        config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        if "deepspeed_config" in config:
            # Accelerate's default, pdsh, would start the processes of the other machines by ssh from the first one.
            assert config["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"

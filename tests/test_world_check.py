"""The requested number of ranks against the number that met, in the environments that launchers and SLURM create."""

from __future__ import annotations

import signal

import pytest
import torch

from dtrain.accelerate_launch import how_it_ended
from dtrain.errors import InputError
from dtrain.runtime import distributed
from dtrain.runtime.distributed import backend_of
from dtrain.runtime.world_check import check_devices, check_world

TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "RANK": "0"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
UNCONNECTED = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ACCELERATE = ["python", "/venv/bin/accelerate", "launch"]


@pytest.mark.parametrize(
    ("formed", "environment"),
    [
        pytest.param(1, {}, id="alone"),
        pytest.param(4, TORCHRUN, id="launcher"),
        pytest.param(1, {"ACCELERATE_USE_CPU": "True"}, id="one process asked of accelerate"),
        pytest.param(1, {"MASTER_ADDR": "n1"}, id="a stray variable"),
        pytest.param(4, TORCHRUN | STEP, id="a launcher a node"),
        pytest.param(2, {"WORLD_SIZE": "2"} | STEP, id="a task a rank"),
        pytest.param(1, STEP | {"SLURM_STEP_NUM_TASKS": "1"}, id="one node of two on purpose"),
        pytest.param(1, {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS": "4"}, id="one node"),
    ],
)
def test_worlds_that_are_right(formed: int, environment: dict[str, str]) -> None:
    check_world(formed, environment, ["finetune", "my.yaml"], [])


@pytest.mark.parametrize(
    ("formed", "environment", "launcher", "told"),
    [
        pytest.param(1, TORCHRUN, [], ["4 processes were asked for", "world of 1"], id="unconnected ranks"),
        pytest.param(
            1,
            UNCONNECTED,
            [*ACCELERATE, "--cpu", "--num_machines", "2", "--num_processes", "4", "-m", "dtrain"],
            ["asked for 4 processes", "formed on each of 2 machines", "--num_machines 2", "-m dtrain finetune my.yaml"],
            id="accelerate --cpu on two machines",
        ),
        pytest.param(1, UNCONNECTED, [*ACCELERATE, "--cpu", "--num_processes", "3", "t.py"], ["asked for 3"], id="3"),
        pytest.param(1, UNCONNECTED, ["bash"], ["asked for 2 processes", "cpu.yaml"], id="launcher unknown"),
        pytest.param(1, STEP, [], ["job 7 started 2 tasks as ranks", "a world of 1 formed", "sbatch"], id="srun alone"),
        pytest.param(
            2,
            TORCHRUN | STEP | {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"},
            [],
            ["2 tasks as launchers, but 1 connected (a world of 2)"],
            id="a launch a node, each on its own",
        ),
        pytest.param(
            2,
            {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"},
            [],
            [
                "has 2 nodes, but a world of 2 formed on one of them",
                "srun --nodes=1 --ntasks=1 dtrain finetune my.yaml",
            ],
            id="launched in the batch script",
        ),
    ],
)
def test_worlds_that_are_wrong(formed: int, environment: dict[str, str], launcher: list[str], told: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_world(formed, environment, ["finetune", "my.yaml"], launcher)
    for words in told:
        assert words in str(caught.value)


def test_it_is_told_once_a_step() -> None:
    with pytest.raises(InputError) as caught:
        check_world(1, STEP | {"SLURM_PROCID": "1"}, ["finetune", "my.yaml"], [])
    assert caught.value.problems == []


def test_more_ranks_than_gpus_are_refused() -> None:
    """The first rank prints one line. A machine without GPUs is accepted, and so are ranks that each see a GPU of their
    own.
    """
    launched = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    with pytest.raises(
        InputError, match="2 processes were started on a machine with 1 GPU: NCCL needs one each"
    ) as told:
        check_devices(launched, 1)
    assert "launch.backend=gloo" in str(told.value)
    with pytest.raises(InputError) as caught:
        check_devices(launched | {"LOCAL_RANK": "1"}, 1)
    assert caught.value.problems == []
    for environment, gpus in (
        (launched, 2),
        (launched, 8),
        (launched, 0),
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1),  # srun gave each task a GPU of its own
    ):
        check_devices(environment, gpus)


@pytest.mark.parametrize(
    ("asked", "gpus", "backend"), [("auto", True, "nccl"), ("auto", False, "gloo"), ("gloo", True, "gloo")]
)
def test_what_ranks_talk_through(asked: str, gpus: bool, backend: str) -> None:
    assert backend_of(asked, gpus) == backend


def test_nccl_needs_gpus() -> None:
    with pytest.raises(InputError, match=r"launch.backend: nccl needs GPUs \(found none; allowed here: gloo, auto\)"):
        backend_of("nccl", False)


def test_of_several_ranks_without_gpus_one_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError) as told:
        backend_of("nccl", False)
    assert told.value.problems == []


def test_gloo_on_a_machine_with_fewer_gpus_than_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of GPUs matters only if NCCL is used."""
    asked: list[int] = []

    def check(environment: object, gpus: int) -> None:
        asked.append(gpus)
        raise InputError([])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "check_devices", check)
    for backend in ("gloo", "auto", "nccl"):
        with pytest.raises(InputError):
            distributed.connect(backend=backend)
    assert asked == [0, 1, 1]


def test_nccl_ends_a_rank_by_a_signal_of_its_own() -> None:
    assert "waited in a collective longer than launch.timeout" in how_it_ended(signal.SIGABRT, gpus=True)
    assert how_it_ended(signal.SIGABRT, gpus=False).startswith("was killed by SIGABRT")
    assert how_it_ended(signal.SIGKILL, gpus=True).startswith("was killed by SIGKILL")

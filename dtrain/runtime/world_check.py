"""Whether as many ranks have connected as a launcher or SLURM was asked for.

`accelerate launch --cpu --num_machines 2` starts processes that never connect, each of them rank 0 of 1, and ends with
exit code 0; `srun` of several tasks without a launcher does the same. Each process would train the whole model and
overwrite the others' files. What was asked for is in the environment, and in the launcher's command.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import yaml
from accelerate.commands.launch import launch_command_parser

from dtrain.errors import InputError

TEMPLATE = "launch/slurm/stage.sbatch"


def check_world(formed: int, environment: Mapping[str, str], command: Sequence[str], launcher: Sequence[str]) -> None:
    """Refuse to go on where another number of ranks has connected than was asked for.

    Args:
        formed: how many ranks are connected.
        environment: of this process, as the launcher set it.
        command: this process's own arguments, as `["finetune", "my.yaml"]`.
        launcher: the command line of the process that started this one.

    Raises:
        InputError: how many were expected, how many connected, and the command that does what was meant.
    """
    asked = int(environment.get("WORLD_SIZE", "0"))
    if asked and asked != formed:
        raise InputError(f"{asked} processes were asked for (WORLD_SIZE), but a world of {formed} formed")
    # Accelerate's launcher for one process sets MASTER_ADDR when several were asked for, and a launcher that
    # connects them would have set WORLD_SIZE.
    if not asked and "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment:
        _refuse_unconnected(formed, command, launcher)
    _check_slurm(formed, environment, command)


def check_devices(environment: Mapping[str, str], gpus: int) -> None:
    """Refuse more ranks on this machine than it has GPUs.

    Accelerate would give two ranks the same GPU, and NCCL then ends with an error that names neither.

    Args:
        environment: of this process, as the launcher set it.
        gpus: how many this process sees; 0 where ranks compute on CPUs, or may share a GPU.

    Raises:
        InputError: there are more; with the two numbers and what to set.
    """
    ranks = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    # Without torchrun's launcher, SLURM may have given each rank a GPU of its own to see.
    if gpus and ranks > gpus and "TORCHELASTIC_RUN_ID" in environment:
        if environment.get("LOCAL_RANK", "0") != "0":
            raise InputError([])
        raise InputError(
            f"{ranks} processes were started on a machine with {gpus} GPU{'s' if gpus > 1 else ''}: NCCL needs one each. "
            f"Ask for {gpus} (--num_processes), share them over gloo (launch.backend=gloo), or hide them "
            "(CUDA_VISIBLE_DEVICES=) to compute on CPUs"
        )


def parent_command() -> list[str]:
    """The command line of this process's parent; empty where it cannot be read."""
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    except psutil.Error:
        return []


def _refuse_unconnected(formed: int, command: Sequence[str], launcher: Sequence[str]) -> None:
    machines, processes = _asked_of_accelerate(launcher)
    each = f"on each of {machines} machines" if machines > 1 else "here"
    right = ["accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml", "--num_processes", str(processes)]
    if machines > 1:
        right += ["--num_machines", str(machines), "--machine_rank", "RANK_OF_THIS_MACHINE"]
        right += ["--main_process_ip", "FIRST_MACHINE", "--main_process_port", "PORT"]
    raise InputError(
        f"accelerate launch was asked for {processes} processes, but a world of {formed} formed {each}: with --cpu (or "
        f"use_cpu: true) it connects none. This connects them: {' '.join(right)} -m dtrain {shlex.join(command)}"
    )


def _asked_of_accelerate(launcher: Sequence[str]) -> tuple[int, int]:
    """Machines and processes that the `accelerate launch` command asks for, its config file included."""
    # Where the numbers are not known: two processes are the least with which Accelerate names a main process.
    if "launch" not in launcher:
        return 1, 2
    words = list(launcher)[list(launcher).index("launch") + 1 :]
    config: dict[str, Any] = {}
    try:
        options, _ = launch_command_parser().parse_known_args(words)
        if options.config_file:
            with open(options.config_file, encoding="utf-8") as file:
                config = yaml.safe_load(file) or {}
    except (SystemExit, OSError, ValueError, yaml.YAMLError):
        return 1, 2
    machines = options.num_machines or config.get("num_machines") or 1
    processes = options.num_processes or config.get("num_processes") or 1
    return int(machines), max(int(processes), int(machines), 2)


def _check_slurm(formed: int, environment: Mapping[str, str], command: Sequence[str]) -> None:
    launchers = int(environment.get("GROUP_WORLD_SIZE", "0"))  # torchrun's; without a launcher each task is a rank
    job = environment.get("SLURM_JOB_ID", "")
    words = shlex.join(command)
    if "SLURM_STEP_ID" in environment:
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if tasks == (launchers or formed):
            return
        what = f"ranks, but a world of {formed} formed"
        if launchers:
            what = f"launchers, but {launchers} connected (a world of {formed})"
        problem = f"SLURM job {job} started {tasks} tasks as {what}"
    else:
        nodes = int(environment.get("SLURM_NNODES", "1"))
        if nodes <= max(launchers, 1):
            return
        problem = f"SLURM job {job} has {nodes} nodes, but a world of {formed} formed on one of them"
    if environment.get("SLURM_PROCID", "0") != "0":
        raise InputError([])  # every task finds the same, and the first one has the message
    raise InputError(
        f"{problem}. All nodes: sbatch {TEMPLATE} {words}  (one launcher a node). "
        f"One node on purpose: srun --nodes=1 --ntasks=1 dtrain {words}"
    )

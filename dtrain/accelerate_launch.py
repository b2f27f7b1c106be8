"""Start ranks with `accelerate launch` inside this process, once the launchers of all machines are connected.

This is a module of its own because it imports torch and accelerate, which starting a single process does not need.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.agent.server import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from dtrain.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_STOPPED, DtrainError, exit_code_of
from dtrain.forks import Forked
from dtrain.runtime.attendance import open_store, rendezvous
from dtrain.runtime.machines import Machines


def meet(machines: Machines, seconds: float) -> TCPStore:
    """Wait until the launcher of every machine is connected.

    torchrun's launcher waits for other machines in silence, for minutes, and then shows a traceback. So the launchers
    connect here before they start any process.

    Args:
        seconds: how long to wait for the others.

    Returns:
        The store through which they are connected; it must live for as long as they run.

    Raises:
        DtrainError: naming the machines that did not connect.
    """
    store = open_store(machines.host, machines.port, serve=machines.rank == 0, seconds=seconds)
    rendezvous(store, "machine", machines.rank, machines.count, seconds)
    return store


def how_it_ended(number: int, gpus: bool) -> str:
    """The message about a rank that was ended by a signal.

    NCCL raises no exception in Python: a thread of torch ends the process by SIGABRT when a collective fails or times out.

    Args:
        number: the signal's number.
        gpus: whether the ranks computed on GPUs, and so communicated by NCCL.
    """
    again = "`dtrain run` again continues"
    if gpus and number == signal.SIGABRT:
        lost = "waited in a collective longer than launch.timeout for another rank, or lost the connection to it"
        return f"{lost} (NCCL ended it by SIGABRT); {again}"
    return f"was killed by {signal.Signals(number).name}; {again}"


@contextlib.contextmanager
def _forked_ranks() -> Iterator[None]:
    """Within this context, torch's elastic agent forks ranks that it would else start as `python -u -m dtrain ...`."""
    start = SubprocessHandler._popen

    def fork(handler: SubprocessHandler, words: tuple[str, ...], environment: dict[str, str]) -> Any:
        if words[:4] != (sys.executable, "-u", "-m", "dtrain") or handler._stdout or handler._stderr:
            return start(handler, words, environment)
        return Forked(words[4:], environment)

    SubprocessHandler._popen = fork  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        SubprocessHandler._popen = start  # type: ignore[method-assign]


def accelerate_launch(
    config: Path,
    processes: int,
    arguments: list[str],
    machines: Machines,
    port: int,
    *,
    gpus: bool,
    forked: bool = False,
) -> int:
    """Run `-m dtrain ARGUMENTS` in `processes` ranks over all machines and return the exit code.

    Args:
        port: the port on the first machine at which the ranks of all machines connect.
        gpus: whether this machine has GPUs.
        forked: whether ranks are forks of this process (see `dtrain.forks`).

    Raises:
        DtrainError: the launchers of several machines lost their connection.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # The first machine's launcher may end while another one still polls it; torch then logs pages of errors,
    # though nothing is wrong.
    api.logger.setLevel(logging.CRITICAL)
    options = [
        "--config_file",
        str(config),
        "--num_processes",
        str(processes),
        "--main_process_port",
        str(port),
    ]
    if machines.count > 1:
        options += ["--num_machines", str(machines.count), "--machine_rank", str(machines.rank)]
        options += ["--main_process_ip", machines.host, "--deepspeed_multinode_launcher", "standard"]
    parsed = launch_command_parser().parse_args([*options, "-m", "dtrain", *arguments])
    # torch's own handlers would kill the workers 30 s after a signal; those of dtrain pass the signal on and wait.
    parsed.signals_to_handle = "SIGQUIT"
    if not gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which Accelerate imports, prints a warning
    try:
        with _forked_ranks() if forked else contextlib.nullcontext():
            launch_command(parsed)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        _, first = error.get_first_failure()
        if first.exitcode in (EXIT_BAD_INPUT, EXIT_STOPPED):
            return first.exitcode  # the launcher ended the other ranks after this one had left
        for rank, failure in error.failures.items():
            # The launcher itself sends SIGTERM, and SIGKILL 30 s later, to ranks that wait for the lost one or hang.
            own = failure.exitcode == -signal.SIGTERM or failure.timestamp > first.timestamp + 10
            if failure.exitcode < 0 and not own:
                print(f"rank {rank} {how_it_ended(-failure.exitcode, gpus)}", file=sys.stderr, flush=True)
        return exit_code_of(codes)
    except (DistError, ConnectionError) as error:
        raise DtrainError(f"the launchers lost each other: {str(error).splitlines()[0]}") from None
    return EXIT_DONE

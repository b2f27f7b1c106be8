"""Several machines in one launch: how many there are, which one this is, where they meet; and this one's CPU cores."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dtrain.errors import InputError


@dataclass(frozen=True)
class Machines:
    """The machines that run one launch each, together."""

    count: int = 1
    rank: int = 0
    host: str = "127.0.0.1"  # of the first machine
    port: int = 0  # where their launchers meet; each launch takes one of the ports after it


ONE_MACHINE = Machines()


def parse_machines(count: int, rank: int, rendezvous: str | None) -> Machines:
    """The machines that options of the command line describe; `rendezvous` is HOST:PORT.

    Raises:
        InputError: an option is wrong, which the message names.
    """
    if count == 1 and rank == 0 and rendezvous is None:
        return ONE_MACHINE
    if count < 1:
        raise InputError(f"--machines: {count} (allowed: 1 or more)")
    if not 0 <= rank < count:
        raise InputError(f"--machine-rank: {rank} (allowed: 0 to {count - 1}, as --machines says)")
    host, _, port = (rendezvous or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 - 8:
        raise InputError(f"--rendezvous: {rendezvous or 'is missing'} (allowed: FIRST_MACHINE:PORT, as node1:20480)")
    return Machines(count, rank, host, int(port))


def usable_cores() -> int:
    """CPU cores for the processes of this launch: those it may run on, and no more than SLURM gave the task.

    Not every cluster binds tasks to their cores; there two jobs on a node would each start threads for all of it.
    """
    allowed = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(allowed, int(given)) if given.isdecimal() and int(given) else allowed

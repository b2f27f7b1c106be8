"""Fill a store again and again; each time the process is killed with SIGKILL at a random moment, and the last time it
may finish.

    python killed_fills.py STORE KILLS KIND     prints the number of whole shards at each kill

Children are forked before torch has started a thread, so that imports are needed only once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from conftest import KINDS, Job, run_ranks

PAUSE = 0.01  # seconds per batch, so that kills are spread over all parts of the work
BATCHES = 30  # at most before a kill; a whole fill takes about 50, so several processes share the work


def fill(store: Path, kind: str, told: int) -> None:
    job = Job(**KINDS[kind])

    def tell(*_: object) -> None:
        """Writes a byte for every batch, so that the kill comes during the work and not during the start, which takes
        long on a busy machine.
        """
        os.write(told, b".")
        time.sleep(PAUSE)

    job.teacher.register_forward_pre_hook(tell)
    run_ranks(2, lambda world: job.fill(store, world))


def killed_fill(store: Path, kind: str) -> bool:
    """Whether the fill was killed before it was done."""
    listen, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(listen)
        fill(store, kind, told)
        os._exit(0)
    os.close(told)
    wanted = random.randrange(BATCHES)
    while wanted > 0 and (seen := os.read(listen, 1)):
        wanted -= len(seen)
    time.sleep(random.uniform(0, 2 * PAUSE))
    os.kill(child, signal.SIGKILL)
    os.close(listen)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main() -> None:
    store, kills, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    shards: list[int] = []
    while len(shards) < kills:
        if killed_fill(store, kind):
            shards.append(len(list(store.glob("shard-*"))))
        else:
            for path in store.glob("shard-*"):
                path.unlink()  # complete: leave work for the next kills
    fill(store, kind, os.open(os.devnull, os.O_WRONLY))
    print(*shards)


if __name__ == "__main__":
    main()

"""Wall and CPU seconds of each layer of tests, of one or more checkouts, one after another on this machine:

    git worktree add ../before COMMIT && ln -s "$PWD/.venv" ../before/.venv
    python tests/benchmarks/ci_time.py ../before .

CPU seconds (user and system, of all processes that the tests started and waited for) say more than wall seconds where
the machine does other work beside.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

LAYERS = {
    "unit tests, 2 workers": ["-n", "2", "-m", "not distributed and not slurm and not slow"],
    "real processes": ["-m", "distributed and not slow"],
    "SLURM": ["-m", "slurm and not slow"],
}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    print("| checkout | layer | wall s | CPU s | exit code |\n|---|---|---|---|---|", flush=True)
    for checkout in map(Path, sys.argv[1:]):
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        for layer, options in LAYERS.items():
            begin, used = time.monotonic(), cpu_seconds()
            words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
            done = subprocess.run(words, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True)
            wall, cpu = time.monotonic() - begin, cpu_seconds() - used
            print(f"| {checkout} | {layer} | {wall:.0f} | {cpu:.0f} | {done.returncode} |", flush=True)
            if done.returncode:
                print(done.stdout[-8000:], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Start the processes of `dtrain run` as forks of the launcher, which imports once what all of them need.

A new interpreter takes four to six seconds of one core to import torch, datasets and transformers, and every process of
every launch would do so. A fork starts at once and shares the launcher's memory pages.

A fork has only the thread that called `fork`. Locks that other threads held stay locked; OpenMP's pool of threads, which
torch's first computation on a CPU starts, is silently lost; and CUDA does not work at all. So a launcher forks only if it
imported torch itself and computed nothing: not for a caller that had imported torch before (a notebook, or a module that
the recipe names), not where there are GPUs, and only on Linux. Libraries that start threads when they are imported
(OpenBLAS, Arrow) prepare for forks themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from dtrain.errors import EXIT_DONE, EXIT_FAILED
from dtrain.recipe.schema import Recipe
from dtrain.runtime.signals import SIGNALS
from dtrain.stages import find_stage

# Imported when the first optimizer is made, and by no stage's module before.
_LATE = ("torch._dynamo",)
_PR_SET_NAME = 15  # <linux/prctl.h>


def possible() -> bool:
    """Whether this process may fork, by its platform and its imports; the caller checks that there is no GPU."""
    return sys.platform == "linux" and "torch" not in sys.modules


def pages(stages: Iterable[str]) -> list[str]:
    """The names of the modules that a process of these stages imports before it begins."""
    return ["dtrain.stages.runner", *(find_stage(name).module for name in stages)]


def models(recipe: Recipe) -> list[str]:
    """The names of the modules that such a process imports later, to build and train the recipe's models."""
    found: list[str] = []
    for member in (*recipe.teachers, *recipe.students):
        for path in (member.model.module, member.model.builder):
            if path is not None:
                found.append(path.partition(":")[0])
    return [*dict.fromkeys(found), *_LATE]


def load(names: Iterable[str], beside: Forked | None = None) -> None:
    """Import modules, so that forks made later have them.

    A module that cannot be imported is skipped: the process that needs it reports the error.

    Args:
        beside: a running process; once it has ended, no further module is imported, so that its end is noticed soon.
    """
    for name in names:
        if beside is not None and beside.poll() is not None:
            return
        with contextlib.suppress(Exception):
            importlib.import_module(name)


class Forked:
    """A process that does what `python -m dtrain WORDS` does, with the methods of `subprocess.Popen` that launchers use.

    It is the leader of a session of its own, and inherits which signals this process blocks.

    Args:
        words: as `("run", "recipe.yaml", "--here")`.
        environment: all of its variables. A variable that a library reads on import has the effect of this process's value.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.args = [sys.executable, "-m", "dtrain", *words]
        self.returncode: int | None = None
        gc.freeze()  # else the first garbage collection in the fork would copy every page
        ready, tell = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads. The one thread here only waits for an event (see `launch`).
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _become(words, environment, tell)
        os.close(tell)
        os.read(ready, 1)  # now it leads its session, to which launchers send signals
        os.close(ready)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code (negative: the signal that ended it); raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _become(words: Sequence[str], environment: Mapping[str, str], tell: int) -> NoReturn:
    """Do what `python -m dtrain WORDS` does, and exit. The pipe `tell` is closed once this process leads its session."""
    code: object = EXIT_FAILED
    try:
        os.setsid()
        for number in SIGNALS:  # the inherited handlers are the launcher's, which pass signals on
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        # `ps` shows the launcher's command line for this process, too; its name in `top` and `ps -o comm` tells what it is.
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"dtrain rank {environment.get('RANK', '0')}".encode()[:15])
        os.close(tell)
        sys.argv = ["dtrain", *words]
        if sys.path[0] != os.getcwd():  # that of a console script begins with the script's folder
            sys.path.insert(0, os.getcwd())
        importlib.import_module("dtrain.__main__").entry()
    except SystemExit as end:
        code = EXIT_DONE if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else EXIT_FAILED)

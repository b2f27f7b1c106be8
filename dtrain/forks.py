"""Processes of `dtrain run` as forks of the launcher, which has imported for all of them what they need.

A new interpreter takes four to six seconds of one core to import torch, datasets and transformers, and every process of every
launch would. A fork begins at once and shares the launcher's pages.

A fork has only the thread that made it. What other threads held stays held in it, and OpenMP's pool of threads, which torch's
first computation on a CPU starts, is lost without a word; CUDA refuses to work at all. So a launcher forks where it has
imported torch itself and computed nothing: not for a caller that had torch already (a notebook, or a module that the recipe
names), not where there are GPUs, and on Linux alone. Libraries that start threads when they are imported (OpenBLAS, Arrow)
prepare for forks themselves.
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

# What the first optimizer that is made imports, and no page does.
_LATE = ("torch._dynamo",)
_PR_SET_NAME = 15  # <linux/prctl.h>


def possible() -> bool:
    """Whether this process may fork, by what it has imported; whether there are GPUs is the caller's to know."""
    return sys.platform == "linux" and "torch" not in sys.modules


def pages(stages: Iterable[str]) -> list[str]:
    """The modules that a process of these stages imports before it begins."""
    return ["dtrain.stages.runner", *(find_stage(name).module for name in stages)]


def models(recipe: Recipe) -> list[str]:
    """The modules that it imports later, to build and to train the recipe's models."""
    found: list[str] = []
    for member in (*recipe.teachers, *recipe.students):
        for path in (member.model.module, member.model.builder):
            if path is not None:
                found.append(path.partition(":")[0])
    return [*dict.fromkeys(found), *_LATE]


def load(names: Iterable[str], beside: Forked | None = None) -> None:
    """Import modules; with `beside` as long as this process is at work, so that its end is noticed soon.

    One that cannot be imported is left to the process that needs it, which tells why.
    """
    for name in names:
        if beside is not None and beside.poll() is not None:
            return
        with contextlib.suppress(Exception):
            importlib.import_module(name)


class Forked:
    """A process that does what `python -m dtrain WORDS` does, with the methods of `subprocess.Popen` that launchers use.

    It leads a session of its own. Signals that are blocked here are blocked there.

    Args:
        words: as `("run", "recipe.yaml", "--here")`.
        environment: all of its variables. Those that a library reads when it is imported are as in this process.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.args = [sys.executable, "-m", "dtrain", *words]
        self.returncode: int | None = None
        gc.freeze()  # else the first collection in the fork would copy every page
        ready, tell = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads. The one of this process waits for an event, see `launch`.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _become(words, environment, tell)
        os.close(tell)
        os.read(ready, 1)  # it leads its session now, to which launchers send their signals
        os.close(ready)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code (negative: the signal that ended it); raises subprocess.TimeoutExpired."""
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
    """Be the process that `python -m dtrain WORDS` would be, to its end; `tell` is closed when it has begun."""
    code: object = EXIT_FAILED
    try:
        os.setsid()
        for number in SIGNALS:  # the launcher's handlers would pass them on
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        # `ps` shows the launcher's command line for this process, too; its name in `top` and `ps -o comm` tells what it is.
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"dtrain rank {environment.get('RANK', '0')}".encode()[:15])
        os.close(tell)
        sys.argv = ["dtrain", *words]
        if sys.path[0] != os.getcwd():  # a console script's begins with its own folder
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

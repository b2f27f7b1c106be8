"""Signals and time limits that ask a process to stop, and ending it with its launcher.

Signals are recorded from the start of the process, and acted on where work can be saved. Importing torch and connecting
to the other ranks takes seconds: a signal that comes meanwhile must neither be lost nor end the process like a crash.
A time limit counts from the moment at which the command was given.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# A scheduler signals every process of a job, and the launcher passes its signal on: both are one request.
SAME_SECONDS = 1.0
STOP_AT = "DTRAIN_STOP_AT"  # seconds since the epoch, for every process of the command
JOB_ENDS_AT = "SLURM_JOB_END_TIME"
LAUNCHER = "DTRAIN_LAUNCHER"  # its process id, for the workers that it starts
MARGIN_SECONDS = 120.0  # of a job's time are reserved for the last step, the checkpoint and leaving
received: list[str] = []  # names, in order
_heard: dict[int, float] = {}
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def listen() -> None:
    """Note signals from now on, and those that came before and were blocked; called in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _hear)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with_launcher() -> None:
    """Have the kernel (Linux) kill this worker when the `dtrain run` that started it dies.

    Ranks without a launcher would wait for each other, or keep the run folder locked, until `launch.timeout` and longer.
    """
    launcher = os.environ.pop(LAUNCHER, None)  # not for what this process starts itself
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # the launcher was already dead before that
        os.kill(os.getpid(), signal.SIGKILL)


def _hear(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if now - _heard.get(number, -SAME_SECONDS) < SAME_SECONDS:
        return
    _heard[number] = now
    received.append(signal.Signals(number).name)
    if len(received) > 2:
        # Asked for the third time: the signal's default action. Files under their final names stay complete.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def limit_time(seconds: float | None) -> None:
    """Have this command and all that it starts stop by itself after `seconds`, or shortly before its SLURM job ends."""
    now = time.time()
    ends = [now + seconds] if seconds is not None else []
    if os.environ.get(JOB_ENDS_AT, "").isdecimal():
        left = float(os.environ[JOB_ENDS_AT]) - now
        ends.append(now + left - min(MARGIN_SECONDS, left / 10))
    if ends:
        os.environ.setdefault(STOP_AT, f"{min(ends):.0f}")


def time_is_up() -> bool:
    """Whether the limit of `limit_time` is reached."""
    return STOP_AT in os.environ and time.time() >= float(os.environ[STOP_AT])

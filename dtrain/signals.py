"""Asking a process to stop: signals are heard from its first moment, and acted on where work can be kept.

Importing torch and joining the other ranks takes seconds; a signal in them must not be lost, nor end the process
as if it had crashed.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
received: list[str] = []  # names, in order


def listen() -> None:
    """Take over the signals; from the main thread."""
    for number in SIGNALS:
        signal.signal(number, _hear)


def _hear(number: int, frame: FrameType | None) -> None:
    if received:
        # Asked again: a third time is the default action. Files under final names stay whole.
        signal.signal(number, signal.SIG_DFL)
    received.append(signal.Signals(number).name)

"""Lines for the person watching: once, from the main rank, in full."""

from __future__ import annotations

import os
import sys

_quiet = False


def be_quiet() -> None:
    """Print nothing: the launcher of the first machine prints the same lines."""
    global _quiet
    _quiet = True


def is_main_process() -> bool:
    """Whether this process speaks for the launch; known from the launcher's environment alone."""
    return os.environ.get("RANK", "0") == "0" and not _quiet


def say(text: str) -> None:
    """Print one line to stdout on the main rank."""
    if is_main_process():
        print(text, flush=True)


def say_anywhere(text: str) -> None:
    """Print one line to stdout from whichever rank it happens on (a student that lives there)."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Print one warning line to stderr on the main rank."""
    if is_main_process():
        print(f"warning: {text}", file=sys.stderr, flush=True)

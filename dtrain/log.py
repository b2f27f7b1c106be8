"""Lines for the person watching: once, from the main rank, in full."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

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
        _line(text, sys.stdout)


def say_anywhere(text: str) -> None:
    """Print one line to stdout from whichever rank it happens on (a student that lives there)."""
    _line(text, sys.stdout)


def warn(text: str) -> None:
    """Print one warning line to stderr on the main rank."""
    if is_main_process():
        _line(f"warning: {text}", sys.stderr)


def tell(text: str) -> None:
    """Print one line to stderr on the main rank, where stdout holds answers."""
    if is_main_process():
        _line(text, sys.stderr)


_TO_BEGIN = "\r\x1b[K"  # to the line's begin, and the rest of it empty


def _line(text: str, stream: TextIO) -> None:
    """Print a line where progress bars may be: on a terminal it takes their place, and they come again below it.

    Bars of this process are taken away and drawn again by tqdm. Of another rank's bar, which stands on the line that the
    cursor is in, nothing is known here: that line is emptied first, and the rank draws its bar again by itself.
    """
    if not stream.isatty():
        print(text, file=stream, flush=True)
        return
    tqdm: Any = sys.modules.get("tqdm")  # where nobody has loaded it, there is no bar of this process
    with tqdm.tqdm.external_write_mode(stream) if tqdm else contextlib.nullcontext():
        print(f"{_TO_BEGIN}{text}", file=stream, flush=True)

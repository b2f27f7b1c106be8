"""Print lines for the user: each one once, by the main rank, and whole even where progress bars are drawn."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

_quiet = False


def be_quiet() -> None:
    """Make `say`, `warn` and `tell` print nothing here: the launcher of the first machine prints the same lines."""
    global _quiet
    _quiet = True


def is_main_process() -> bool:
    """Whether this process prints for the whole launch: it has rank 0 (by its environment), and is not quiet."""
    return os.environ.get("RANK", "0") == "0" and not _quiet


def say(text: str) -> None:
    """Print one line to stdout on the main rank."""
    if is_main_process():
        _line(text, sys.stdout)


def say_anywhere(text: str) -> None:
    """Print one line to stdout on any rank, as the one that trains a student."""
    _line(text, sys.stdout)


def warn(text: str) -> None:
    """Print one warning line to stderr on the main rank."""
    if is_main_process():
        _line(f"warning: {text}", sys.stderr)


def tell(text: str) -> None:
    """Print one line to stderr on the main rank, for commands whose stdout holds answers."""
    if is_main_process():
        _line(text, sys.stderr)


_TO_BEGIN = "\r\x1b[K"  # moves the cursor to the line's start and clears the line


def _line(text: str, stream: TextIO) -> None:
    """Print a line where progress bars may be: on a terminal it takes their place, and they are redrawn below it.

    tqdm clears and redraws the bars of this process. Another rank's bar, on the line where the cursor is, is not known
    here: that line is cleared first, and the other rank redraws its bar by itself.
    """
    if not stream.isatty():
        print(text, file=stream, flush=True)
        return
    tqdm: Any = sys.modules.get("tqdm")  # if tqdm is not imported, this process has no bar
    with tqdm.tqdm.external_write_mode(stream) if tqdm else contextlib.nullcontext():
        print(f"{_TO_BEGIN}{text}", file=stream, flush=True)

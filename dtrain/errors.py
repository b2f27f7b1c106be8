"""The ways in which a command can fail, their exit codes, and the parts that error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0  # done, or there was nothing left to do
EXIT_FAILED = 1  # failed: a rank died, the disk is full, a loss is not finite, every student failed, a bug
EXIT_BAD_INPUT = 2  # bad input: one line for each problem on stderr with its remedy, nothing written
EXIT_STOPPED = 75  # stopped on request after a complete checkpoint; the same command continues (EX_TEMPFAIL)


def exit_code_of(codes: Iterable[int]) -> int:
    """The exit code of a command from those of its processes: 2 if one of them is 2, else 75, else 1 unless all are 0."""
    codes = set(codes)
    ordered = (EXIT_BAD_INPUT, EXIT_STOPPED)
    return next((code for code in ordered if code in codes), EXIT_FAILED if codes - {EXIT_DONE} else EXIT_DONE)


class DtrainError(Exception):
    """A failure that is reported to the user in plain lines, without a traceback.

    Attributes:
        problems: those lines.
    """

    exit_code = EXIT_FAILED

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class InputError(DtrainError):
    """Bad input: each problem names a file and line, or the recipe's key, and what is allowed."""

    exit_code = EXIT_BAD_INPUT


def reason_of(error: Exception) -> str:
    """The text of an error in one line; that of an unexpected exception begins with the name of its class."""
    return "; ".join(error.problems) if isinstance(error, DtrainError) else f"{type(error).__name__}: {error}"


class EveryStudentFailed(DtrainError):
    """No student has a model; the reason of each is in its folder."""


class Stopped(DtrainError):
    """Stopped on request after a complete checkpoint."""

    exit_code = EXIT_STOPPED


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def suggest(name: object, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: `; did you mean 'x'?`, or empty if none is similar."""
    near = difflib.get_close_matches(str(name), list(allowed), 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""

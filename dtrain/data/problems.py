"""Many mistakes told at once: bad rows are collected, up to a limit that still fits a screen."""

from __future__ import annotations

from collections.abc import Iterable

from dtrain.errors import InputError

LIMIT = 20


class Problems:
    """Collects lines for the user; raises InputError at the limit, or when asked to."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) >= LIMIT:
            raise InputError([*self.lines, f"stopped reading after {LIMIT} problems"])

    def raise_if_any(self) -> None:
        if self.lines:
            raise InputError(self.lines)


def shown(words: Iterable[str], limit: int = 20) -> str:
    """Words for a message, cut after `limit` of them."""
    words = list(words)
    more = f", ... {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more

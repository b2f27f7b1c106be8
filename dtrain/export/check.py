"""An exported model against the one that it was made from, on real rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Difference:
    """Of answers to the same rows: how many rows have another answer, and how far numbers in them are apart at most.

    Attributes:
        numbers: how many were compared.
    """

    rows: int = 0
    flips: int = 0
    largest: float = 0.0
    numbers: int = 0

    def see(self, ours: Any, theirs: Any) -> None:
        """Two answers to one row: labels, places and texts must be equal; numbers are compared where they are."""
        self.rows += 1
        if _without_numbers(ours) != _without_numbers(theirs):
            self.flips += 1
        else:
            apart = [abs(a - b) for a, b in zip(_numbers(ours), _numbers(theirs), strict=True)]
            self.numbers += len(apart)
            self.largest = max([self.largest, *apart])

    def in_words(self, part: str) -> str:
        """For a sentence; `part`: which rows they are."""
        numbers = f", numbers by {self.largest:.2g} at most" if self.numbers else ""
        return f"{self.rows:,} {part} rows {self.flips} answers differ{numbers}"


def difference(ours: list[Any], theirs: list[Any]) -> Difference:
    """Of two lists of answers to the same rows."""
    found = Difference()
    for one, other in zip(ours, theirs, strict=True):
        found.see(one, other)
    return found


def _without_numbers(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {key: _without_numbers(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [_without_numbers(value) for value in answer]
    return None if isinstance(answer, float) else answer


def _numbers(answer: Any) -> list[float]:
    if isinstance(answer, float):
        return [answer]
    values = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else ()
    return [number for value in values for number in _numbers(value)]

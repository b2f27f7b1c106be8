"""Compare an exported model with the one that it was made from, on real rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Difference:
    """How much two models' answers to the same rows differ.

    Attributes:
        rows: how many rows were compared.
        flips: how many of them have another answer, numbers aside.
        largest: the largest absolute difference between numbers, in rows with the same answer.
        numbers: how many numbers were compared.
    """

    rows: int = 0
    flips: int = 0
    largest: float = 0.0
    numbers: int = 0

    def see(self, ours: Any, theirs: Any) -> None:
        """Compare two answers to one row. If labels, places and texts are equal, the numbers are compared, too."""
        self.rows += 1
        if _without_numbers(ours) != _without_numbers(theirs):
            self.flips += 1
        else:
            apart = [abs(a - b) for a, b in zip(_numbers(ours), _numbers(theirs), strict=True)]
            self.numbers += len(apart)
            self.largest = max([self.largest, *apart])

    def in_words(self, part: str) -> str:
        """The difference as the end of a sentence; `part` names the rows."""
        numbers = f", numbers by {self.largest:.2g} at most" if self.numbers else ""
        return f"{self.rows:,} {part} rows {self.flips} answers differ{numbers}"


def difference(ours: list[Any], theirs: list[Any]) -> Difference:
    """Compare two lists of answers to the same rows."""
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

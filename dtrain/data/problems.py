"""What there is to say about the user's files: mistakes, one line a kind of them, and remarks on what is no mistake.

Readers go on after a mistake, so that one pass tells every kind of it: a wrong column in 50,000 rows is one line with
the first place and the count. Remarks are warnings that `check` and `prepare` print and the report shows.
"""

from __future__ import annotations

from collections.abc import Iterable

from dtrain.errors import InputError

LIMIT = 20  # kinds of problems: as many lines as still fit a screen
SHOWN = 60  # characters of what was found


class RowError(ValueError):
    """What is wrong with one row, in the user's words.

    Args:
        kind: the part of the message that every row with this mistake has in common.
        found: what follows it for this row.
    """

    def __init__(self, kind: str, found: str = "") -> None:
        super().__init__(kind + found)
        self.kind = kind


class Problems:
    """Collects mistakes by kind, and remarks."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, int]] = {}  # kind -> the first line, and how many more there are
        self.remarks: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, line: str, kind: str | None = None) -> None:
        """Take note of a problem; raises InputError at the 20th kind.

        Args:
            line: names file and line, or the recipe's key.
            kind: the same for problems of which the first stands for all; by default each line is of its own kind.
        """
        kind = kind or line
        first, more = self._kinds.get(kind, (line, -1))
        self._kinds[kind] = first, more + 1
        if len(self._kinds) >= LIMIT:
            raise InputError([*self.lines, f"stopped reading after {LIMIT} problems"])

    def add_row(self, file: str, line: int, error: ValueError) -> None:
        """Take note of what is wrong with a row."""
        self.add(f"{file}:{line}: {error}", error.kind if isinstance(error, RowError) else str(error))

    def remark(self, line: str) -> None:
        """Take note of something that is no mistake, and that the user should know. Said twice, it is told once."""
        if line not in self.remarks:
            self.remarks.append(line)

    @property
    def state(self) -> tuple[dict[str, tuple[str, int]], list[str]]:
        """All that was taken note of so far, to which it can be set back."""
        return dict(self._kinds), list(self.remarks)

    @state.setter
    def state(self, state: tuple[dict[str, tuple[str, int]], list[str]]) -> None:
        kinds, remarks = state
        self._kinds, self.remarks = dict(kinds), list(remarks)

    @property
    def lines(self) -> list[str]:
        """A line a kind, in the order in which they were found."""
        return [f"{first} ({more:,} more like it)" if more else first for first, more in self._kinds.values()]

    def raise_if_any(self) -> None:
        """Raises InputError with every kind of problem so far."""
        if self._kinds:
            raise InputError(self.lines)


def shown(words: Iterable[str], limit: int = 20) -> str:
    """Words for a message: each shortened, and cut after `limit` of them."""
    words = list(words)
    more = f", ... {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(map(shortened, words[:limit])) + more


def shortened(text: str, limit: int = SHOWN) -> str:
    """A text for a message: its beginning, where it is long."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."

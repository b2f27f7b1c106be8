"""Messages about the user's files: problems, one line for each kind, and remarks, which are only warnings.

Readers continue after a problem, so that one pass reports every kind: a wrong column in 50,000 rows is one line with
the first place and the count. `check` and `prepare` print remarks, and the report shows them.
"""

from __future__ import annotations

from collections.abc import Iterable

from dtrain.errors import InputError

LIMIT = 20  # kinds of problems, so that their lines fit on a screen
SHOWN = 60  # the most characters of a quoted value


class RowError(ValueError):
    """A problem with one row, as a message for the user.

    Args:
        kind: the part of the message that is the same for every row with this problem.
        found: the rest of the message, for this row.
    """

    def __init__(self, kind: str, found: str = "") -> None:
        super().__init__(kind + found)
        self.kind = kind


class Problems:
    """Collects problems by kind, and remarks."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, int]] = {}  # kind -> the first line, and how many more there are
        self.remarks: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, line: str, kind: str | None = None) -> None:
        """Add a problem; raises InputError at the 20th kind.

        Args:
            line: the message, which begins with file and line, or with the recipe's key.
            kind: problems of the same kind are reported as one line, that of the first; by default, `line` itself.
        """
        kind = kind or line
        first, more = self._kinds.get(kind, (line, -1))
        self._kinds[kind] = first, more + 1
        if len(self._kinds) >= LIMIT:
            raise InputError([*self.lines, f"stopped reading after {LIMIT} problems"])

    def add_row(self, file: str, line: int, error: ValueError) -> None:
        """Add a problem with the row at `line` of `file`."""
        self.add(f"{file}:{line}: {error}", error.kind if isinstance(error, RowError) else str(error))

    def remark(self, line: str) -> None:
        """Add a remark, something that the user should know although it is no mistake. Repeated ones are ignored."""
        if line not in self.remarks:
            self.remarks.append(line)

    @property
    def state(self) -> tuple[dict[str, tuple[str, int]], list[str]]:
        """A copy of all problems and remarks so far; assigning it restores them."""
        return dict(self._kinds), list(self.remarks)

    @state.setter
    def state(self, state: tuple[dict[str, tuple[str, int]], list[str]]) -> None:
        kinds, remarks = state
        self._kinds, self.remarks = dict(kinds), list(remarks)

    @property
    def lines(self) -> list[str]:
        """One line for each kind of problem, in the order in which they were found."""
        return [f"{first} ({more:,} more like it)" if more else first for first, more in self._kinds.values()]

    def raise_if_any(self) -> None:
        """Raises InputError with every kind of problem so far."""
        if self._kinds:
            raise InputError(self.lines)


def shown(words: Iterable[str], limit: int = 20) -> str:
    """Words as a list in a message: each shortened, and at most `limit` of them."""
    words = list(words)
    more = f", ... {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(map(shortened, words[:limit])) + more


def shortened(text: str, limit: int = SHOWN) -> str:
    """A text for a message; the end of a long one is replaced by three dots."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."

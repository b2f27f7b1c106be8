"""Ids that users give to rows: the rows of a part must have different ones."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from dtrain.data.problems import Problems, RowError, shortened
from dtrain.errors import InputError

T = TypeVar("T")


class SeenIds:
    """The ids of each part that were read so far.

    A dictionary of all ids takes 250 bytes per row. Where all ids differ, hashes of 8 bytes are enough to show it; see
    `read_once_or_twice`.

    Args:
        exact: keep every id with its file and line instead of its hash.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self.exact = exact
        self._hashes: dict[str, array[int]] = defaultdict(lambda: array("q"))
        self._places: dict[str, dict[str, str]] = defaultdict(dict)

    def see(self, part: str, key: str, file: str, line: int) -> None:
        """Record the id `key` of a row at `line` of `file`.

        Raises:
            RowError: another row of the part has the same id (only if `exact`).
        """
        if not self.exact:
            self._hashes[part].append(hash(key))
            return
        places = self._places[part]
        if key in places:
            raise RowError("id ", f"{shortened(key)!r} is already that of {places[key]}")
        places[key] = f"{file}:{line}"

    @property
    def doubtful(self) -> bool:
        """Whether two ids of a part have the same hash, and so may be equal."""
        return any(len(np.unique(np.array(found))) < len(found) for found in self._hashes.values())


def read_once_or_twice(read: Callable[[SeenIds], T], problems: Problems) -> T:
    """The result of `read`, which is called again with exact ids where two ids of a part may be equal.

    Args:
        read: reads all rows and records their ids.
        problems: the problems that `read` adds to; those of the first call are discarded before the second.
    """
    before = problems.state
    seen = SeenIds()
    try:
        result = read(seen)
        if not seen.doubtful:
            return result
        del result
    except InputError:
        if not seen.doubtful:
            raise
    problems.state = before
    return read(SeenIds(exact=True))

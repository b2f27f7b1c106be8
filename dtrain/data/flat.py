"""One long array that lies in several pieces, most of them in files: nothing is copied but what is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COPIED_BYTES = 64 << 20  # up to here a copy in memory, which is read faster


class FlatArray:
    """Pieces of one dtype, one after another. Reads as a 1-d array by an array of places or by a slice.

    Millions of rows are then shared by all ranks of a machine, as pages of the files that they are mapped from.
    """

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        self.pieces = [piece for piece in pieces if len(piece)]
        self.ends = np.cumsum([len(piece) for piece in self.pieces], dtype=np.int64)
        self.dtype = pieces[0].dtype

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, where: Any) -> np.ndarray:
        """The values at `where`, an int array of any shape without negative places, or a slice without a step."""
        if isinstance(where, slice):
            start, stop, _ = where.indices(len(self))
            return self._between(start, max(start, stop))
        flat = np.asarray(where).ravel()
        found = np.empty(len(flat), dtype=self.dtype)
        piece_of = np.searchsorted(self.ends, flat, side="right")
        order = np.argsort(piece_of, kind="stable")
        numbers, firsts = np.unique(piece_of[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, firsts)[1:], strict=True):
            piece = self.pieces[number]
            found[places] = piece[flat[places] - (self.ends[number] - len(piece))]
        return found.reshape(np.shape(where))

    def _between(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.ends, [start, max(start, stop - 1)], side="right").tolist()
        parts = []
        for number in range(first, min(last + 1, len(self.pieces))):
            begin = int(self.ends[number]) - len(self.pieces[number])
            parts.append(self.pieces[number][max(0, start - begin) : stop - begin])
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])


def flat_array(pieces: Sequence[np.ndarray]) -> np.ndarray | FlatArray:
    """The pieces as one array: a copy where they are small, else where they are."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if sum(piece.nbytes for piece in pieces) <= COPIED_BYTES else FlatArray(pieces)


def pieces_of(values: np.ndarray | FlatArray) -> list[np.ndarray]:
    """What `flat_array` was given, or made of it."""
    return values.pieces if isinstance(values, FlatArray) else [values]

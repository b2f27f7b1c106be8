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
        self.begins = [0, *self.ends[:-1].tolist()]
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
            found[places] = piece[flat[places] - self.begins[number]]
        return found.reshape(np.shape(where))

    def _between(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.ends, [start, max(start, stop - 1)], side="right").tolist()
        parts = []
        for number in range(first, min(last + 1, len(self.pieces))):
            begin = self.begins[number]
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


def padded(values: np.ndarray | FlatArray, starts: np.ndarray, lengths: np.ndarray, fill: int) -> np.ndarray:
    """The stretches of `values` that begin at `starts` [B], padded right to the longest (L); int64 [B, L]."""
    places = np.arange(lengths.max(initial=0))
    if isinstance(values, np.ndarray):
        mask = places < lengths[:, None]
        # Padding reads any value that exists, and is overwritten.
        return np.where(mask, values[np.where(mask, starts[:, None] + places, 0)], fill).astype(np.int64)
    rows = np.full((len(starts), len(places)), fill, dtype=np.int64)
    # A row lies in one piece: one by one takes a sixth of the time of looking up the piece of every token.
    piece_of = np.searchsorted(values.ends, starts, side="right").tolist()
    for row, number, start, length in zip(rows, piece_of, starts.tolist(), lengths.tolist(), strict=True):
        if length:
            begin = start - values.begins[number]
            row[:length] = values.pieces[number][begin : begin + length]
    return rows

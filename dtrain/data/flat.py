"""One long array made of several pieces, most of them memory-mapped files: only what is read is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

COPIED_BYTES = 64 << 20  # up to this size the pieces are copied to one array in memory, which is read faster


class FlatArray:
    """Pieces with one dtype, one after another; indexed like a 1-d array, by an array of positions or a slice.

    All ranks of a machine share the pages of the mapped files, so that millions of rows are in memory once.
    """

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        self.pieces = [piece for piece in pieces if len(piece)]
        self.ends = np.cumsum([len(piece) for piece in self.pieces], dtype=np.int64)
        self.begins = [0, *self.ends[:-1].tolist()]
        self.dtype = pieces[0].dtype

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, where: Any) -> np.ndarray:
        """The values at `where`: an int array of any shape without negative positions, or a slice without a step."""
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
    """The pieces as one array: copied where they are small, else a FlatArray over them."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if sum(piece.nbytes for piece in pieces) <= COPIED_BYTES else FlatArray(pieces)


def pieces_of(values: np.ndarray | FlatArray) -> list[np.ndarray]:
    """The pieces that an array from `flat_array` consists of."""
    return values.pieces if isinstance(values, FlatArray) else [values]


def padded(values: np.ndarray | FlatArray, starts: np.ndarray, lengths: np.ndarray, fill: int) -> np.ndarray:
    """The slices of `values` that begin at `starts` [B] with `lengths` [B], padded on the right with `fill`.

    Returns:
        int64 [B, L], L being the greatest length.
    """
    places = np.arange(lengths.max(initial=0))
    if isinstance(values, np.ndarray):
        mask = places < lengths[:, None]
        # Padded positions read the first value, which `fill` then replaces.
        return np.where(mask, values[np.where(mask, starts[:, None] + places, 0)], fill).astype(np.int64)
    rows = np.full((len(starts), len(places)), fill, dtype=np.int64)
    # A row lies in one piece: copying row by row takes a sixth of the time of looking up the piece of every token.
    piece_of = np.searchsorted(values.ends, starts, side="right").tolist()
    for row, number, start, length in zip(rows, piece_of, starts.tolist(), lengths.tolist(), strict=True):
        if length:
            begin = start - values.begins[number]
            row[:length] = values.pieces[number][begin : begin + length]
    return rows

"""From documents of any length to rows of exactly L tokens, without padding, and the reading of them.

A document is `[CLS] tokens [SEP]`, or several such pieces where it has more than L - 2 tokens: pieces end with a
sentence where one ends in reach. Pieces follow each other in one stream that is cut every L tokens. A word that such
a cut goes through is not to be masked: whole words only. The last tokens, fewer than L, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from dtrain.errors import DtrainError
from dtrain.tasks.masked_lm.masking import MASKABLE, PIECE_START, SENTENCE, UNKNOWN, WORD, WORD_START

Documents = tuple[np.ndarray, np.ndarray, np.ndarray]  # flat tokens, flat flags, offsets [documents + 1]


def pack(documents: Iterable[Documents], length: int, cls: int, sep: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of stretches of documents as (tokens int32 [N, length], kinds uint8 [N, length]), see masking.py.

    Rows do not depend on how the documents are cut into stretches.
    """
    tokens, kinds = np.empty(0, np.int32), np.empty(0, np.uint8)
    for stretch in documents:
        more_tokens, more_kinds = _stream(*stretch, length, cls, sep)
        tokens, kinds = np.concatenate([tokens, more_tokens]), np.concatenate([kinds, more_kinds])
        whole = len(tokens) // length * length
        if whole:
            cut = len(kinds) > whole and bool(goes_on(kinds[whole]))
            rows = kinds[:whole].reshape(-1, length).copy()
            # The last word of a row is cut if the next row goes on with it.
            yield tokens[:whole].reshape(-1, length), without_cut_words(rows, np.append(goes_on(rows[1:, 0]), cut))
            if cut:  # the rest begins with a word's end
                rest = kinds[whole:]
                rest[: np.argmax(np.append(~goes_on(rest), True))] = 0
            tokens, kinds = tokens[whole:], kinds[whole:]


def _stream(tokens: np.ndarray, flags: np.ndarray, offsets: np.ndarray, length: int, cls: int, sep: int) -> tuple:
    """Documents as pieces with their special tokens, one after another."""
    starts = _piece_starts(flags, offsets, length - 2)
    piece = np.zeros(len(tokens), dtype=np.int64)
    piece[starts[1:]] = 1
    piece = piece.cumsum()
    sizes = np.diff(np.append(starts, len(tokens)))
    ends = (sizes + 2).cumsum()
    out, kinds = (
        np.full(len(tokens) + 2 * len(starts), sep, np.int32),
        np.zeros(len(tokens) + 2 * len(starts), np.uint8),
    )
    place = np.arange(len(tokens)) + 2 * piece + 1
    out[place] = tokens
    word = (flags & WORD) > 0
    word[starts] = True
    kinds[place] = (MASKABLE + word * WORD_START) * ((flags & UNKNOWN) == 0)
    out[ends - sizes - 2] = cls
    kinds[ends - sizes - 2] = PIECE_START
    return out, kinds


def _piece_starts(flags: np.ndarray, offsets: np.ndarray, room: int) -> np.ndarray:
    """Where pieces begin: with documents, and in those of more than `room` tokens with the last sentence that fits.

    A sentence of more than `room` tokens is cut before a word, one word of more than that anywhere.
    """
    begins = offsets[:-1][np.diff(offsets) > 0]
    more: list[int] = []
    for document in np.flatnonzero(np.diff(offsets) > room):
        start, end = offsets[document], offsets[document + 1]
        while end - start > room:
            within = flags[start + 1 : start + room + 1]
            for bit in (SENTENCE, WORD):
                places = np.flatnonzero(within & bit)
                if len(places):
                    start = start + 1 + places[-1]
                    break
            else:
                start = start + room
            more.append(int(start))
    return np.sort(np.concatenate([begins, np.array(more, dtype=begins.dtype)]))


def goes_on(kinds: np.ndarray) -> np.ndarray:
    """Whether a token continues the word of the one in front."""
    return (kinds & (MASKABLE | WORD_START)) == MASKABLE


def without_cut_words(kinds: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Rows [N, L], changed in place: the parts of words that a row's end has cut are not maskable.

    `cut`: whether a row's last word goes on behind it, bool [N].
    """
    head = goes_on(kinds)
    places = np.arange(kinds.shape[1])
    head_end = np.where(head.all(axis=1), len(places), np.argmin(head, axis=1))
    last_start = len(places) - 1 - np.argmax(((kinds & WORD_START) > 0)[:, ::-1], axis=1)
    last_start = np.where(((kinds & WORD_START) > 0).any(axis=1), last_start, 0)
    parts = places < head_end[:, None]
    parts |= (places >= last_start[:, None]) & cut[:, None]
    kinds[parts & ((kinds & MASKABLE) > 0)] = 0
    return kinds


# --- on disk -----------------------------------------------------------------------------------------


def write_rows(rows: Iterable[tuple[np.ndarray, np.ndarray]], length: int, folder: Path) -> int:
    """Write stretches of rows as Arrow files in `folder`; how many rows there are."""
    folder.mkdir(parents=True)
    schema = pa.schema({"tokens": pa.list_(pa.int32(), length), "kinds": pa.list_(pa.uint8(), length)})
    count = 0
    for number, (tokens, kinds) in enumerate(rows):
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), length) for values in (tokens, kinds)
        ]
        with pa.OSFile(str(folder / f"rows-{number:05d}.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        count += len(tokens)
    return count


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of `length` tokens, mapped from disk. Attribute of `Fit`: `lengths`."""

    paired: ClassVar[bool] = False  # see pairs.py
    length: int
    tokens: list[np.ndarray]  # a file each, int32 [n, length]
    kinds: list[np.ndarray]  # uint8 [n, length]
    ends: np.ndarray  # int64 [files], rows up to the end of each file

    @classmethod
    def open(cls, folder: Path) -> PackedRows:
        """Raises DtrainError where there are no rows."""
        files = sorted(folder.glob("rows-*.arrow"))
        if not files:
            raise DtrainError(f"{folder}: no packed rows here; run the stage `pretrain`")
        tokens, kinds = [], []
        for file in files:
            batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
            length = batch.schema.field("tokens").type.list_size
            tokens.append(batch.column("tokens").flatten().to_numpy().reshape(-1, length))
            kinds.append(batch.column("kinds").flatten().to_numpy().reshape(-1, length))
        return cls(length, tokens, kinds, np.cumsum([len(t) for t in tokens]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [N]: the same for all."""
        return np.full(len(self), self.length, dtype=np.int32)

    def take(self, index: np.ndarray, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, length] and kinds uint8 [B, length] of the rows at `index` [B]; of any epoch."""
        tokens = np.empty((len(index), self.length), np.int32)
        kinds = np.empty((len(index), self.length), np.uint8)
        file = np.searchsorted(self.ends, index, side="right")
        for number in np.unique(file):
            here = file == number
            inside = index[here] - (self.ends[number] - len(self.tokens[number]))
            tokens[here], kinds[here] = self.tokens[number][inside], self.kinds[number][inside]
        return tokens, kinds

"""Packing documents of any length into rows of exactly L tokens without padding, and reading these rows.

A document is `[CLS] tokens [SEP]`, or several such pieces if it has more than L - 2 tokens. Pieces end at the end of a
sentence where possible. All pieces form one stream, which is cut every L tokens. A word that is cut there is not
masked, since only whole words are. The last tokens, fewer than L, are left out.
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
    """Pack documents, which come in batches, into rows: (tokens int32 [N, length], kinds uint8 [N, length]).

    `kinds` are the flags of masking.py. The rows do not depend on how the documents are divided into batches.
    """
    tokens, kinds = np.empty(0, np.int32), np.empty(0, np.uint8)
    for stretch in documents:
        more_tokens, more_kinds = _stream(*stretch, length, cls, sep)
        tokens, kinds = np.concatenate([tokens, more_tokens]), np.concatenate([kinds, more_kinds])
        whole = len(tokens) // length * length
        if whole:
            cut = len(kinds) > whole and bool(goes_on(kinds[whole]))
            rows = kinds[:whole].reshape(-1, length).copy()
            # The last word of a row is cut if the next row begins with the rest of it.
            yield tokens[:whole].reshape(-1, length), without_cut_words(rows, np.append(goes_on(rows[1:, 0]), cut))
            if cut:  # the rest begins with the end of a word, which is not maskable
                rest = kinds[whole:]
                rest[: np.argmax(np.append(~goes_on(rest), True))] = 0
            tokens, kinds = tokens[whole:], kinds[whole:]


def _stream(tokens: np.ndarray, flags: np.ndarray, offsets: np.ndarray, length: int, cls: int, sep: int) -> tuple:
    """One batch of documents as a stream of pieces with special tokens: (tokens int32 [M], kinds uint8 [M])."""
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
    """The positions at which pieces of at most `room` tokens begin, in ascending order.

    Every document begins a piece. A longer one is cut before the last sentence that begins within reach, else (in a
    sentence of more than `room` tokens) before the last word, else anywhere.
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
    """Whether a token continues the word of the token before it."""
    return (kinds & (MASKABLE | WORD_START)) == MASKABLE


def without_cut_words(kinds: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Clear the flags of tokens whose word is cut by the beginning or end of their row; returns `kinds`.

    Args:
        kinds: uint8 [N, L], changed in place.
        cut: whether a row's last word continues after it, bool [N].
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
    """Write each batch of rows as an Arrow file in `folder`, which is created; return the number of rows."""
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
    """Packed rows of `length` tokens, memory-mapped from disk."""

    paired: ClassVar[bool] = False  # see pairs.py
    length: int
    tokens: list[np.ndarray]  # one array for each file, int32 [n, length]
    kinds: list[np.ndarray]  # uint8 [n, length]
    ends: np.ndarray  # int64 [files], number of rows up to the end of each file

    @classmethod
    def open(cls, folder: Path) -> PackedRows:
        """Open what `write_rows` wrote.

        Raises:
            DtrainError: the folder holds no rows.
        """
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
        """Number of tokens of each row, int32 [N]; all are equal."""
        return np.full(len(self), self.length, dtype=np.int32)

    def take(self, index: np.ndarray, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, length] and kinds uint8 [B, length] of the rows at `index` [B], the same in every epoch."""
        tokens = np.empty((len(index), self.length), np.int32)
        kinds = np.empty((len(index), self.length), np.uint8)
        file = np.searchsorted(self.ends, index, side="right")
        for number in np.unique(file):
            here = file == number
            inside = index[here] - (self.ends[number] - len(self.tokens[number]))
            tokens[here], kinds[here] = self.tokens[number][inside], self.kinds[number][inside]
        return tokens, kinds

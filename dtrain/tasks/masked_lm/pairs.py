"""Rows of two texts for next-sentence prediction: `[CLS] A [SEP] B [SEP]` without padding; B follows A, or does not.

Devlin et al. 2018 (1810.04805), section 3.1, task 2. The files hold one stream: all documents in order, each followed
by [SEP], cut every `length` - 3 tokens. The pair that a row of the stream becomes is drawn anew in each epoch, as masks
are. First a sentence of the row is drawn at which the row is divided; it is never the first of its document.

    A      the tokens of the row before that sentence
    B      in half of the rows: the stream from that sentence on, as many tokens as fill the row;
           in the others: as many tokens from the division of another row, which shares no document with this row

In both cases B begins with a sentence inside a document, so neither text alone tells which case it is. A and B may
extend across ends of documents, as rows without pairs do. Documents of a single sentence are thus part of rows, but no
row is divided at one. A row of the stream in which no sentence follows another of its document is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from dtrain.errors import InputError
from dtrain.tasks.masked_lm.draws import CUT, PARTNER, SIDE, draw, row_keys
from dtrain.tasks.masked_lm.masking import (
    MASKABLE,
    OTHER,
    PIECE_START,
    SECOND,
    SENTENCE,
    SENTENCE_START,
    UNKNOWN,
    WORD,
    WORD_START,
)
from dtrain.tasks.masked_lm.packing import Documents, PackedRows, goes_on, without_cut_words, write_rows

SPECIAL = 3  # [CLS] and two [SEP]
SPANS = "documents.arrow"
SPAN = pa.schema({name: pa.int32() for name in ("first", "last", "sentences")})


def write_pairs(documents: Iterable[Documents], length: int, sep: int, folder: Path) -> tuple[int, int]:
    """Write the stream from which pairs of `length` tokens are drawn.

    The files do not depend on how the documents are divided into batches.

    Returns:
        The number of pairs, and the number of rows of the stream that were left out.

    Raises:
        InputError: no pairs can be made, with the reason; the caller adds the key of the text.
    """
    spans: list[np.ndarray] = [np.zeros((0, len(SPAN)), np.int32)]

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for tokens, kinds, owners in _stream(documents, length - SPECIAL, sep):
            sentences = ((kinds & SENTENCE_START) > 0).sum(axis=1)
            spans.append(np.stack([owners[:, 0], owners[:, -1], sentences], axis=1).astype(np.int32))
            yield tokens, kinds

    count = write_rows(rows(), length - SPECIAL, folder)
    if count < 2:
        raise InputError(f"too little text to fill two rows of {length} tokens (pretrain.phases: max_length)")
    batch = pa.record_batch(list(np.concatenate(spans).T), schema=SPAN)
    with pa.OSFile(str(folder / SPANS), "wb") as sink, pa.ipc.new_file(sink, SPAN) as writer:
        writer.write_batch(batch)
    pairs = PairedRows.open(folder, 0, 0, sep)
    if not len(pairs):
        raise InputError(
            f"in no row of {length} tokens does a sentence follow another one of its document, as "
            "pretrain.next_sentence needs"
        )
    begin, end = pairs.near(np.arange(len(pairs)))
    if (end - begin).max() == len(pairs):
        raise InputError(
            f"a row of {length} tokens has no row of other documents to be paired with: pretrain.next_sentence needs "
            "more documents"
        )
    return len(pairs), count - 1 - len(pairs)


def _stream(documents: Iterable[Documents], room: int, sep: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of rows of the stream: tokens int32, kinds uint8 and the number of each token's document, all [N, room].

    The last tokens, fewer than `room`, are left out.
    """
    rest: list[np.ndarray] = [np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.int64)]
    count = 0
    for stretch in documents:
        tokens, kinds, owners = _with_ends(*stretch, sep)
        more = (tokens, kinds, owners + count)
        joined = [np.concatenate([left, new]) for left, new in zip(rest, more, strict=True)]
        count += int(owners[-1]) + 1 if len(owners) else 0
        whole = len(joined[0]) // room * room
        rest = [values[whole:] for values in joined]
        if whole:
            rows, row_kinds, row_owners = (values[:whole].reshape(-1, room) for values in joined)
            row_kinds[:, 0] &= 0xFF ^ SENTENCE_START  # a row cannot be divided before its first token
            yield rows, row_kinds, row_owners


def _with_ends(
    tokens: np.ndarray, flags: np.ndarray, offsets: np.ndarray, sep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents, each followed by [SEP]: tokens, their kinds, and the number of each token's document, from 0."""
    filled = np.diff(offsets) > 0
    starts, sizes = offsets[:-1][filled], np.diff(offsets)[filled]
    number = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(tokens)) + number
    out = np.full(len(tokens) + len(sizes), sep, np.int32)
    out[place] = tokens
    sentence, word = (flags & SENTENCE) > 0, (flags & WORD) > 0
    word[starts] = True
    sentence[starts] = False
    kinds = np.zeros(len(out), np.uint8)
    kinds[place] = (MASKABLE + word * WORD_START) * ((flags & UNKNOWN) == 0) + sentence * SENTENCE_START
    return out, kinds, np.repeat(np.arange(len(sizes)), sizes + 1)


@dataclass(frozen=True, eq=False)
class PairedRows:
    """Pairs of two texts, made when they are read, as functions of (seed, epoch, row). Used like `PackedRows`."""

    paired: ClassVar[bool] = True
    stream: PackedRows
    numbers: np.ndarray  # int64 [N], the row of the stream from which each pair takes A
    first: np.ndarray  # int32 [N], the document in which this row begins; `last`: in which it ends
    last: np.ndarray
    reach: np.ndarray  # int32 [N], the document in which the next row of the stream ends
    seed: int
    cls: int
    sep: int

    @classmethod
    def open(cls, folder: Path, seed: int, cls_id: int, sep_id: int) -> PairedRows:
        """Open what `write_pairs` wrote.

        Raises:
            DtrainError: the folder holds no rows.
        """
        stream = PackedRows.open(folder)
        batch = pa.ipc.open_file(pa.memory_map(str(folder / SPANS))).get_batch(0)
        spans = {name: batch.column(name).to_numpy() for name in SPAN.names}
        numbers = np.flatnonzero(spans["sentences"][:-1])  # the last row has no next row from which B could continue
        first, last = spans["first"][numbers], spans["last"][numbers]
        return cls(stream, numbers, first, last, spans["last"][numbers + 1], seed, cls_id, sep_id)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def length(self) -> int:
        """Number of tokens of a row, special tokens included."""
        return self.stream.length + SPECIAL

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, int32 [N]; all are equal."""
        return np.full(len(self), self.length, dtype=np.int32)

    def take(self, index: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, length] and kinds uint8 [B, length] of the pairs at `index` [B] in an epoch."""
        other = (self._draw(index, epoch, SIDE) & np.uint64(1)).astype(bool)
        source = np.where(other, self._partners(index, epoch), index)
        tokens, kinds = self.stream.take(self.numbers[index])
        behind = [self.stream.take(self.numbers[source] + further) for further in (0, 1)]
        cut = self._cuts(kinds, index, epoch)
        start = self._cuts(behind[0][1], source, epoch)

        # The text of a row and the token after it, which shows whether the row's last word is cut.
        room = self.stream.length
        place = np.arange(room + 1)
        second = place >= cut[:, None]
        where = np.where(second, room + (start - cut)[:, None] + place, place)
        text = np.take_along_axis(np.concatenate([tokens, behind[0][0], behind[1][0]], axis=1), where, 1)
        kinds = np.take_along_axis(np.concatenate([kinds, behind[0][1], behind[1][1]], axis=1), where, 1)
        kinds &= MASKABLE | WORD_START
        kinds = without_cut_words(kinds[:, :room], goes_on(kinds[:, room]))

        columns = (place + 1 + second)[:, :room]
        row = np.full((len(index), self.length), self.sep, np.int32)
        row_kinds = np.zeros((len(index), self.length), np.uint8)
        np.put_along_axis(row, columns, text[:, :room], 1)
        np.put_along_axis(row_kinds, columns, kinds, 1)
        row[:, 0] = self.cls
        row_kinds[:, 0] = PIECE_START + other * OTHER
        row_kinds[np.arange(self.length) > cut[:, None] + 1] |= SECOND
        return row, row_kinds

    def near(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The range [begin, end) of pairs whose B may share a document with each pair at `index`, itself included."""
        begin = np.searchsorted(self.reach, self.first[index], side="left")
        return begin, np.searchsorted(self.first, self.last[index], side="right")

    def _partners(self, index: np.ndarray, epoch: int) -> np.ndarray:
        """For each pair another one whose B is from other documents, drawn uniformly."""
        begin, end = self.near(index)
        among = (len(self) - (end - begin)).astype(np.uint64)
        chosen = (self._draw(index, epoch, PARTNER) % among).astype(np.int64)
        return chosen + np.where(chosen >= begin, end - begin, 0)

    def _cuts(self, kinds: np.ndarray, index: np.ndarray, epoch: int) -> np.ndarray:
        """The places at which rows are divided, int [B]: at one of their sentences, drawn uniformly."""
        starts = (kinds & SENTENCE_START) > 0
        chosen = self._draw(index, epoch, CUT) % starts.sum(axis=1).astype(np.uint64)
        return np.argmax(starts.cumsum(axis=1) > chosen.astype(np.int64)[:, None], axis=1)

    def _draw(self, index: np.ndarray, epoch: int, purpose: int) -> np.ndarray:
        return draw(row_keys(self.seed, epoch, index), np.zeros(1, np.int64), purpose)

"""Rows of two texts for next-sentence prediction: `[CLS] A [SEP] B [SEP]`, full, where B goes on from A or does not.

Devlin et al. 2018 (1810.04805), section 3.1, task 2. On disk is one stream: documents one after another, a [SEP]
behind each, cut every `length` - 3 tokens. What a row of it becomes is drawn anew in each epoch, as masks are:

    A      what comes before one of its sentences, not a document's first, so that A ends inside a document
    B      in half of the rows what follows there in the stream, just as much as fills the row;
           in the others as much from where another row is divided, one that shares no document with this row

In both cases B begins with a sentence inside a document, so neither text alone tells which case it is. A text goes on
over its document's end, as rows without pairs do. Documents of one sentence are therefore read beside others, but no
row is divided at one; a row of the stream in which no sentence follows another is left out.
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
    """Write what pairs of `length` tokens are made of; how many there are, and how many rows were left out.

    What is written does not depend on how the documents are cut into stretches.

    Raises:
        InputError: saying why there are none; without the key of the text, which the caller knows.
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
    """Stretches of the stream's rows: tokens int32, kinds uint8 and the number of each token's document, [N, room].

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
            row_kinds[:, 0] &= 0xFF ^ SENTENCE_START  # nothing of the row comes before it
            yield rows, row_kinds, row_owners


def _with_ends(
    tokens: np.ndarray, flags: np.ndarray, offsets: np.ndarray, sep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents with a [SEP] behind each: tokens, their kinds, and the number of each one's document, from 0."""
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
    """Pairs of two texts, made when they are read; functions of (seed, epoch, row). Used as `PackedRows` is."""

    paired: ClassVar[bool] = True
    stream: PackedRows
    numbers: np.ndarray  # int64 [N], the rows of the stream that pairs begin with
    first: np.ndarray  # int32 [N], the documents that such a row begins and ends in
    last: np.ndarray
    reach: np.ndarray  # int32 [N], the document that the next row of the stream ends in
    seed: int
    cls: int
    sep: int

    @classmethod
    def open(cls, folder: Path, seed: int, cls_id: int, sep_id: int) -> PairedRows:
        """What `write_pairs` wrote. Raises DtrainError where there are no rows."""
        stream = PackedRows.open(folder)
        batch = pa.ipc.open_file(pa.memory_map(str(folder / SPANS))).get_batch(0)
        spans = {name: batch.column(name).to_numpy() for name in SPAN.names}
        numbers = np.flatnonzero(spans["sentences"][:-1])  # the last row has none behind it to go on with
        first, last = spans["first"][numbers], spans["last"][numbers]
        return cls(stream, numbers, first, last, spans["last"][numbers + 1], seed, cls_id, sep_id)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def length(self) -> int:
        """Tokens of a row, special ones included."""
        return self.stream.length + SPECIAL

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [N]: the same for all."""
        return np.full(len(self), self.length, dtype=np.int32)

    def take(self, index: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, length] and kinds uint8 [B, length] of the rows at `index` [B], as an epoch has them."""
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
        """The rows (from, up to) whose B may share a document with the rows at `index`; these are among them."""
        begin = np.searchsorted(self.reach, self.first[index], side="left")
        return begin, np.searchsorted(self.first, self.last[index], side="right")

    def _partners(self, index: np.ndarray, epoch: int) -> np.ndarray:
        """For each row one whose B is of other documents, each such row as likely."""
        begin, end = self.near(index)
        among = (len(self) - (end - begin)).astype(np.uint64)
        chosen = (self._draw(index, epoch, PARTNER) % among).astype(np.int64)
        return chosen + np.where(chosen >= begin, end - begin, 0)

    def _cuts(self, kinds: np.ndarray, index: np.ndarray, epoch: int) -> np.ndarray:
        """Where B begins in the rows of the stream at `index`: before one of their sentences, each as likely."""
        starts = (kinds & SENTENCE_START) > 0
        chosen = self._draw(index, epoch, CUT) % starts.sum(axis=1).astype(np.uint64)
        return np.argmax(starts.cumsum(axis=1) > chosen.astype(np.int64)[:, None], axis=1)

    def _draw(self, index: np.ndarray, epoch: int, purpose: int) -> np.ndarray:
        return draw(row_keys(self.seed, epoch, index), np.zeros(1, np.int64), purpose)

"""Rows of packed documents against a plain re-telling of the rule, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.errors import DtrainError
from dtrain.tasks.masked_lm.masking import MASKABLE, PIECE_START, SENTENCE, WORD, WORD_START
from dtrain.tasks.masked_lm.packing import PackedRows, pack, write_rows

CLS, SEP = 2, 3
Document = list[tuple[int, int]]  # (token, flags)


def plain_rows(documents: list[Document], length: int) -> list[list[tuple[int, int]]]:
    """(token, kind) of each row: pieces, one stream, cut; then the words that a cut goes through."""
    stream: list[tuple[int, int, int]] = []  # token, kind, number of its word (0 for none)
    word = 0
    for document in documents:
        rest = list(document)
        while rest:
            take = len(rest)
            if take > length - 2:
                ends = [n for n in range(1, length - 1) if rest[n][1] & SENTENCE]
                ends = ends or [n for n in range(1, length - 1) if rest[n][1] & WORD]
                take = ends[-1] if ends else length - 2
            stream.append((CLS, PIECE_START, 0))
            for place, (token, flags) in enumerate(rest[:take]):
                begins = place == 0 or flags & WORD
                word += bool(begins)
                stream.append((token, MASKABLE | (WORD_START if begins else 0), word))
            stream.append((SEP, 0, 0))
            rest = rest[take:]
    rows = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
    cut = {
        a[2] for a, b in ((stream[n - 1], stream[n]) for n in range(length, len(stream), length)) if a[2] == b[2] != 0
    }
    return [[(token, 0 if number in cut else kind) for token, kind, number in row] for row in rows]


documents = st.lists(
    st.lists(st.sampled_from([0, 0, WORD, WORD, WORD | SENTENCE]), max_size=30), min_size=1, max_size=12
).map(lambda flags: [[(10 + n, f if n else WORD | SENTENCE) for n, f in enumerate(one)] for one in flags])


def stretches(documents: list[Document], at: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    found = []
    for part in (documents[:at], documents[at:]):
        flat = [pair for document in part for pair in document]
        offsets = np.cumsum([0, *map(len, part)])
        found.append((np.array([t for t, _ in flat], np.int32), np.array([f for _, f in flat], np.uint8), offsets))
    return found


@settings(max_examples=200, deadline=None)
@given(documents=documents, length=st.integers(8, 12), at=st.integers(0, 12))
def test_rows_are_those_of_the_plain_rule(documents: list[Document], length: int, at: int) -> None:
    """Wherever the documents are cut into stretches."""
    packed = list(pack(stretches(documents, at), length, CLS, SEP))
    found = [
        list(zip(tokens.tolist(), kinds.tolist(), strict=True))
        for t, k in packed
        for tokens, kinds in zip(t, k, strict=True)
    ]
    assert found == plain_rows(documents, length)


def test_written_rows_come_back_in_any_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        (random.integers(0, 99, (n, 8)).astype(np.int32), random.integers(0, 8, (n, 8)).astype(np.uint8))
        for n in (5, 1, 7)
    ]
    assert write_rows(rows, 8, tmp_path / "rows") == 13
    read = PackedRows.open(tmp_path / "rows")
    assert len(read) == 13 and read.length == 8 and set(read.lengths) == {8}
    index = np.array([12, 0, 5, 4, 6, 5])
    tokens, kinds = read.take(index)
    assert np.array_equal(tokens, np.concatenate([t for t, _ in rows])[index])
    assert np.array_equal(kinds, np.concatenate([k for _, k in rows])[index])


def test_no_rows_are_told(tmp_path: Path) -> None:
    with pytest.raises(DtrainError, match="no packed rows here"):
        PackedRows.open(tmp_path)

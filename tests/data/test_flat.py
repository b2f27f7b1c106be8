"""Arrays in pieces read as one array does; parts of many rows stay in their files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtrain.data import EncodedSplit, PreparedData
from dtrain.data.flat import FlatArray, flat_array, pieces_of
from dtrain.runfolder import RunFolder

PIECES = st.lists(st.lists(st.integers(-9, 9), max_size=5).map(lambda values: np.array(values, np.int32)), min_size=1)


@given(PIECES, st.data())
def test_it_reads_as_one_array(pieces: list[np.ndarray], data: st.DataObject) -> None:
    whole, flat = np.concatenate(pieces), FlatArray(pieces)
    assert (len(flat), flat.dtype) == (len(whole), whole.dtype)
    ends = st.none() | st.integers(-3, len(whole) + 2)
    which = slice(data.draw(ends), data.draw(ends))
    assert flat[which].tolist() == whole[which].tolist()
    if len(whole):
        places = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=12)), np.int64)
        assert flat[places].tolist() == whole[places].tolist()
        table = np.resize(places, (2, 3)) if len(places) else np.zeros((0, 3), np.int64)
        assert np.array_equal(flat[table], whole[table])
        assert flat[table].dtype == whole.dtype


def test_small_arrays_are_copied_and_large_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [np.arange(5), np.arange(3)]
    assert isinstance(flat_array(pieces), np.ndarray)
    assert flat_array(pieces[:1]) is pieces[0]
    monkeypatch.setattr("dtrain.data.flat.COPIED_BYTES", 63)
    flat = flat_array(pieces)
    assert [piece is own for piece, own in zip(pieces_of(flat), pieces, strict=True)] == [True, True]


def test_parts_in_their_files_give_the_same_batches(
    prepare_run: Callable[..., RunFolder], corpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PreparedData.open(prepare_run(corpus, teachers=({"name": "big", "model": {"type": "bert"}},)))
    copied = EncodedSplit.concat([data.part(name, "big") for name in ("train", "transfer")])
    monkeypatch.setattr("dtrain.data.flat.COPIED_BYTES", 0)
    parts = [data.part(name, "big") for name in ("train", "transfer")]
    mapped = EncodedSplit.concat(parts)
    assert isinstance(mapped.tokens, FlatArray)
    owners = [piece.base is not None and not piece.flags.owndata for piece in mapped.tokens.pieces]
    assert all(owners)  # views of the mapped files
    for index in (np.arange(45), np.array([44, 0, 13, 40, 39]), np.array([], dtype=np.int64)):
        expected, found = copied.collate(index), mapped.collate(index)
        assert all(torch.equal(found[name], expected[name]) for name in expected)

"""Stores of the sequences that teachers generate, and of their distributions for the tokens of targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dtrain.knowledge.format import Layout
from dtrain.knowledge.reader import StoreReader
from dtrain.knowledge.top_k import largest
from tests.knowledge.conftest import KINDS, Job


def test_what_was_stored_is_read_by_id(tmp_path: Path) -> None:
    job = Job(**KINDS["written"], dtype="float32")
    store = StoreReader.open(job.make(tmp_path / "store", ranks=2))
    assert [column.name for column in store.manifest.columns] == ["token_logits", "tokens", "sequences", "scores"]
    ids = job.part.ids[[299, 0, 17]]
    tokens, scores = store.candidates(ids[:0])  # of a student that shares no row with its teacher
    assert tokens.shape == (0, 2, 4) and scores.shape == (0, 2)
    tokens, scores = store.candidates(ids)
    assert tokens.shape == (3, 2, 4) and tokens.dtype == np.int32 and (scores[:, 0] >= scores[:, 1]).all()
    found = store.read("token_logits", ids)
    with torch.inference_mode():
        for place, row in enumerate((299, 0, 17)):
            output = job.teacher(**job.part.collate(np.array([row])))
            assert tokens[place].tolist() == output.tokens[0].tolist()
            length = job.part.target_lengths[row]
            values, best = largest(output.logits, 1)
            torch.testing.assert_close(found[place, :length, :2], values[0, :length], atol=1e-5, rtol=1e-5)
            assert torch.equal(found[place, :length, 2:].long(), best[0, :length])
            assert not found[place, length:].any()


def test_the_largest_of_each_token_and_the_rest_as_one() -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    values, tokens = largest(logits, 2)
    assert values.shape == (2, 3, 3) and tokens.shape == (2, 3, 2)
    shares = logits.softmax(2)
    torch.testing.assert_close(values.softmax(2)[..., :2], shares.gather(2, tokens))
    torch.testing.assert_close(values.softmax(2)[..., 2], 1 - shares.gather(2, tokens).sum(2))
    for bad in (np.nan, np.inf, -np.inf):
        broken = logits.clone()
        broken[1, 2, 4] = bad
        assert torch.isfinite(largest(broken, 2)[0]).all(2).tolist() == [[True] * 3, [True, True, False]]


def test_another_search_is_another_store() -> None:
    layout = Job(**KINDS["written"]).layout
    other = layout.model_copy(update={"decoding": "another"})
    assert layout != other and layout.fingerprint != other.fingerprint
    plain = Job().layout
    assert "decoding" not in plain.model_dump() and Layout.model_validate(plain.model_dump()) == plain


@pytest.mark.parametrize(("top_k", "kept"), [(1, 1), (2, None), (3, None), (None, None)])
def test_all_logits_are_stored_where_the_largest_take_no_less_room(top_k: int | None, kept: int | None) -> None:
    job = Job(outputs=("token_logits", "sequences"), top_k=top_k)
    assert job.layout.outputs["token_logits"].top_k == kept  # of 5 tokens: 2 k + 1 numbers

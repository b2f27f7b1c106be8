"""Entities as predict answers them."""

import numpy as np
import pytest

from dtrain.metrics.spans_text import answer_spans

TEXT = "张三在北京abc"
TAGS = np.array([1, 3, 0, 5, 7, 4, 0, 2])  # B-NAME E-NAME O B-LOC E-LOC S-NAME O I-NAME


def test_spans_have_text_type_offsets_and_their_least_probability():
    shares = np.log([0.9, 0.5, 0.99, 0.8, 0.7, 1.0, 0.1, 0.2]).astype(np.float32)
    found = answer_spans(TEXT, TAGS, ["NAME", "LOC"], shares)
    assert [[one[key] for key in ("text", "type", "start", "end")] for one in found] == [
        ["张三", "NAME", 0, 2],
        ["北京", "LOC", 3, 5],
        ["a", "NAME", 5, 6],
    ]
    assert [one["score"] for one in found] == pytest.approx([0.5, 0.7, 1.0], abs=1e-6)
    assert all(TEXT[one["start"] : one["end"]] == one["text"] for one in found)


def test_a_probability_is_never_above_one():
    assert answer_spans("x", np.array([4]), ["NAME"], np.array([1e-6]))[0]["score"] == 1.0


def test_without_probabilities_there_is_no_score():
    assert answer_spans(TEXT[:2], TAGS[:2], ["NAME"]) == [{"text": "张三", "type": "NAME", "start": 0, "end": 2}]
    assert answer_spans("", np.zeros(0, dtype=np.int64), ["NAME"]) == []


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 characters"):
        answer_spans("ab", np.array([0]), ["X"])
    with pytest.raises(ValueError, match="2 characters"):
        answer_spans("ab", np.array([0, 0]), ["X"], np.zeros(3))

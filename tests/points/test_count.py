"""Knowledge points and what is counted of them, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dtrain.points.count import path_lengths, points_of, summary
from dtrain.points.foreground import marked, of_tokens, spread, words_of_column

FRONT = [np.array([False, True, True, False, False]), np.array([True, False, False])]
BACK = [np.array([False, False, False, True, True]), np.array([False, True, True])]  # the first token is special


def test_points_are_under_the_mean_of_the_background() -> None:
    entropies = [np.array([0.0, 1.0, 1.9, 2.1, 2.4]), np.array([1.0, 1.0, 1.1])]
    found = points_of(entropies, BACK, 0.2)  # background means 2.25 and 1.05
    assert found[0].tolist() == [True, True, True, False, False]
    assert found[1].tolist() == [False, False, False]


def test_the_path_of_weights_is_in_norms_of_the_first() -> None:
    weights = [{"w": torch.tensor(w), "n": torch.tensor(7)} for w in ([3.0, 4.0], [3.0, 9.0], [0.0, 5.0])]
    assert path_lengths(iter(weights)) == pytest.approx([0.0, 1.0, 2.0])


def test_what_a_training_comes_to() -> None:
    """Text 0 has most foreground points (2) first at epoch 1, text 1 (1) at epoch 2."""
    none, some = np.zeros(5, dtype=bool), np.array([True, True, True, False, True])
    one = np.array([False, True, False, False, False])
    points = [[none, np.zeros(3, dtype=bool)], [some, np.zeros(3, dtype=bool)], [one, np.array([True, False, True])]]
    found = summary(points, FRONT, BACK, [0.0, 0.5, 2.0], end=2)
    assert [entry["foreground"] for entry in found["epochs"]] == [0.0, 1.0, 1.0]
    assert [entry["background"] for entry in found["epochs"]] == [0.0, 0.5, 0.5]
    assert found["epochs"][0]["share"] is None  # no text has a point
    assert found["epochs"][1]["share"] == pytest.approx(2 / 3)  # of text 0 alone
    assert found["share"] == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert (found["d_mean"], found["d_std"]) == pytest.approx((1.25, 0.75))
    assert found["kept"] == pytest.approx(2 / 3)  # of text 0 one of two, of text 1 its one


def test_a_training_without_points_has_none_of_these_numbers() -> None:
    none = [np.zeros(5, dtype=bool), np.zeros(3, dtype=bool)]
    found = summary([none, none], FRONT, BACK, [0.0, 1.0], end=1)
    assert (found["share"], found["d_mean"], found["kept"], found["foreground"]) == (None, None, None, 0.0)


def test_tokens_of_the_foreground() -> None:
    marks = [marked("股票涨，股票跌", ["股票", "涨停"]), marked("no b", ["b"])]
    assert marks[0].tolist() == [True, True, False, False, True, True, False]
    spans = [(-1, 0, 0), (0, 0, 1), (0, 1, 3), (0, 3, 4), (-1, 0, 0), (1, 0, 2), (1, 3, 4), (1, 4, 4)]
    front, back = of_tokens(spans, marks)
    assert front.tolist() == [False, True, True, False, False, False, True, False]
    assert back.tolist() == [False, False, False, True, False, True, False, False]


def test_words_of_a_column() -> None:
    assert words_of_column("江疏影,美少女,, 甜甜圈 ", ",") == ["江疏影", "美少女", "甜甜圈"]
    assert words_of_column(["a b", ""], ",") == ["a b"]
    assert words_of_column(None, ",") == words_of_column("", ",") == []
    for wrong in (3, [1]):
        with pytest.raises(ValueError, match="a list of texts"):
            words_of_column(wrong, ",")


def test_texts_are_evenly_spread() -> None:
    assert list(spread(3, 5)) == [0, 1, 2]
    assert list(spread(10, 4)) == [0, 2, 5, 7]
    assert math.isclose(len(set(spread(1000, 100))), 100)

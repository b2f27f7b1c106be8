"""Scores of numbers and of sets of labels: scipy's and scikit-learn's last digit, for any number of ranks."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
)
from torch import Tensor, nn

from dtrain.data import EncodedSplit
from dtrain.metrics.label_sets import count_labels, label_set_scores, per_label
from dtrain.metrics.regression import ONE_THREAD, average_ranks, number_scores
from dtrain.tasks.multi_label.task import MultiLabel
from dtrain.tasks.regression.scale import Scale
from dtrain.tasks.regression.task import Regression
from dtrain.training.workers import Workers
from tests.metrics.test_evaluation import MODEL, on_ranks, part_of

LABELS = list("abcde")  # as many as the model of these tests has outputs


def valued(part: EncodedSplit, values: list[list[float]], dtype: type) -> EncodedSplit:
    """The same rows with values in place of classes."""
    flat = np.array([value for row in values for value in row], dtype=dtype)
    offsets = np.cumsum([0, *map(len, values)])
    return EncodedSplit(**{**part.__dict__, "values": flat, "value_offsets": offsets})


class OneNumber(nn.Module):
    """The first output of the classifier of these tests."""

    def forward(self, **inputs: Tensor) -> Any:
        return SimpleNamespace(logits=MODEL(**inputs).logits[:, :1])


# --- numbers ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 400), st.integers(0, 3))
def test_numbers_score_as_scipy_and_scikit_learn_say(seed: int, rows: int, digits: int) -> None:
    draw = np.random.default_rng(seed)
    gold = np.round(draw.normal(2, 1, rows) * draw.choice([1.0, 1e4]), digits)  # few digits: many ties
    predicted = (gold + draw.normal(size=rows)).astype(np.float32).astype(np.float64)
    found = number_scores(gold, predicted)
    assert found["mse"] == mean_squared_error(gold, predicted)
    assert found["mae"] == mean_absolute_error(gold, predicted)
    np.testing.assert_array_equal(average_ranks(gold), stats.rankdata(gold))
    if len(set(gold)) > 1:
        with warnings.catch_warnings(action="ignore"):
            assert found["pearson"] == stats.pearsonr(gold, predicted).statistic
            assert found["spearman"] == stats.spearmanr(gold, predicted).statistic


def test_many_numbers_are_added_in_stretches_that_one_thread_adds() -> None:
    draw = np.random.default_rng(0)
    gold = draw.normal(size=3 * ONE_THREAD + 17)
    predicted = gold + draw.normal(size=len(gold))
    assert number_scores(gold, predicted)["pearson"] == pytest.approx(
        stats.pearsonr(gold, predicted).statistic, rel=1e-14
    )


def test_a_constant_has_no_correlation() -> None:
    gold, constant = np.array([1.0, 2.0, 4.0]), np.full(3, 0.1)
    for pair in ((gold, constant), (constant, gold)):
        scores = number_scores(*pair)
        assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        number_scores(gold[:0], gold[:0])


drawn_numbers = st.lists(
    st.tuples(st.integers(1, 9), st.none() | st.sampled_from([-1.5, 0.0, 2.0, 2.25])), min_size=2, max_size=25
)


@settings(max_examples=20, deadline=None)
@given(drawn_numbers.filter(lambda rows: any(number is not None for _, number in rows)), st.booleans())
def test_numbers_do_not_depend_on_the_number_of_ranks(
    drawn: list[tuple[int, float | None]], standardized: bool
) -> None:
    plain = part_of([length for length, _ in drawn], [-1 if number is None else 0 for _, number in drawn])
    part = valued(plain, [[] if number is None else [number] for _, number in drawn], np.float64)
    task = Regression(["number"], [])
    task.scale = Scale(1.25, 3.0) if standardized else Scale()
    model = OneNumber()

    def work(world: Any) -> Any:
        return task.record(model, part, Workers.of(world, "fp32", 12))

    (alone,) = on_ranks(1, work)
    for size in (2, 3, 4):
        assert on_ranks(size, work) == [alone] * size
    gold, predicted = map(np.array, alone["scatter"])
    assert gold.tolist() == [number for _, number in drawn if number is not None]
    assert alone["scores"]["mse"] == alone["scores"]["loss"] == mean_squared_error(gold, predicted)
    if len(set(gold)) > 1 and len(set(predicted)) > 1:
        with warnings.catch_warnings(action="ignore"):
            assert alone["scores"]["pearson"] == stats.pearsonr(gold, predicted).statistic
            assert alone["scores"]["spearman"] == stats.spearmanr(gold, predicted).statistic
    with torch.no_grad():
        answers = [model(**part.collate(np.array([row]))).logits.item() for row in np.flatnonzero(part.labels >= 0)]
    # Float32 rounding differs with the batch that a row is in.
    np.testing.assert_allclose(predicted, task.scale.outward(np.array(answers)), rtol=1e-4, atol=1e-5)


# --- sets of labels --------------------------------------------------------------------------------

drawn_sets = st.lists(
    st.tuples(st.integers(1, 9), st.none() | st.sets(st.integers(0, len(LABELS) - 1))), min_size=1, max_size=25
)


@settings(max_examples=20, deadline=None)
@given(drawn_sets.filter(lambda rows: any(labels is not None for _, labels in rows)), st.sampled_from([0.1, 0.5, 0.9]))
def test_label_sets_do_not_depend_on_the_number_of_ranks(
    drawn: list[tuple[int, set[int] | None]], threshold: float
) -> None:
    plain = part_of([length for length, _ in drawn], [-1 if labels is None else 0 for _, labels in drawn])
    part = valued(plain, [sorted(labels or ()) for _, labels in drawn], np.int32)
    task = MultiLabel(LABELS, [])
    task.threshold = threshold

    def work(world: Any) -> Any:
        return task.record(MODEL, part, Workers.of(world, "fp32", 12))

    (alone,) = on_ranks(1, work)
    for size in (2, 3, 4):
        assert on_ranks(size, work) == [alone] * size
    rows = np.flatnonzero(part.labels >= 0)
    gold = np.array([[label in (drawn[row][1] or ()) for label in range(len(LABELS))] for row in rows])
    with torch.no_grad():
        shares = torch.cat([MODEL(**part.collate(np.array([row]))).logits for row in rows]).double().sigmoid().numpy()
    if np.abs(shares - threshold).min() < 1e-4:
        return  # rounding in a batch may decide such a label otherwise
    predicted = shares > threshold
    scores = alone["scores"]
    for average, suffix in (("micro", ""), ("macro", "_macro"), ("weighted", "_weighted")):
        expected = precision_recall_fscore_support(gold, predicted, average=average, zero_division=0)
        assert scores[f"f1{suffix}"] == expected[2]
        if average != "weighted":
            assert (scores[f"precision{suffix}"], scores[f"recall{suffix}"]) == expected[:2]
    assert scores["exact_match"] == accuracy_score(gold, predicted)
    each = f1_score(gold, predicted, average=None, zero_division=0)
    assert [row["f1"] for row in alone["per_class"]] == each.tolist()
    losses = -np.where(gold, np.log(shares), np.log1p(-shares)).mean(1)
    assert scores["loss"] == pytest.approx(losses.mean(), rel=1e-3)


def test_label_sets_by_hand() -> None:
    # Of {0}, {0, 1} and none of three labels, {0}, {1} and {1} were predicted: 2 hits, 3 predicted, 3 gold.
    gold = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]).bool()
    predicted = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0]]).bool()
    counts = count_labels(gold, predicted)
    assert counts.tolist() == [[1, 1, 2], [1, 2, 1], [0, 0, 0]]
    scores = label_set_scores(counts, exact=1, rows=3)
    assert scores["f1"] == 2 / 3 and scores["exact_match"] == 1 / 3
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3) and scores["f1_weighted"] == pytest.approx(
        2 / 3
    )
    assert [row["rows"] for row in per_label(counts, ["x", "y", "z"])] == [2, 1, 0]
    with pytest.raises(ValueError, match="no labelled rows"):
        label_set_scores(counts * 0, exact=0, rows=0)
    with pytest.raises(ValueError, match=r"must both be \[rows, labels\]"):
        count_labels(gold, predicted[:2])

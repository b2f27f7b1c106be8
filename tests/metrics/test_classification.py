"""Scores against scikit-learn's, to the last digit, for any way of splitting the rows."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from dtrain.metrics import Confusion, per_class, scores


@st.composite
def predictions(draw):
    """Classes, some of which may be absent, and rows cut unevenly over 1 to 4 ranks, some of them empty."""
    classes = draw(st.integers(2, 12))
    allowed = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes, unique=True))
    rows = draw(st.lists(st.tuples(st.sampled_from(allowed), st.integers(0, classes - 1)), min_size=1, max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    bounds = [0, *cuts, len(rows)]
    ranks = [rows[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return classes, rows, ranks


def count(rows, classes):
    gold, predicted = (torch.tensor([row[i] for row in rows], dtype=torch.int64) for i in (0, 1))
    return Confusion.of(gold, predicted, classes)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(predictions())
def test_scores_equal_scikit_learn_for_any_split(drawn):
    classes, rows, ranks = drawn
    confusion = sum((count(rank, classes) for rank in ranks), Confusion.empty(classes))
    gold, predicted = [g for g, _ in rows], [p for _, p in rows]

    assert confusion.counts.tolist() == confusion_matrix(gold, predicted, labels=range(classes)).tolist()
    macro = precision_recall_fscore_support(gold, predicted, average="macro", zero_division=0)
    weighted = precision_recall_fscore_support(gold, predicted, average="weighted", zero_division=0)
    assert scores(confusion) == {
        "accuracy": accuracy_score(gold, predicted),
        "precision": macro[0],
        "recall": macro[1],
        "f1": macro[2],
        "f1_weighted": weighted[2],
        "rows": len(rows),
    }
    each = precision_recall_fscore_support(gold, predicted, labels=range(classes), zero_division=0)
    table = per_class(confusion, [str(c) for c in range(classes)])
    assert [[row[k] for row in table] for k in ("precision", "recall", "f1", "rows")] == [list(v) for v in each]


def test_scores_of_many_rows_equal_scikit_learn():
    generator = torch.Generator().manual_seed(5)
    gold = torch.randint(0, 15, (20_000,), generator=generator)
    predicted = torch.where(torch.rand(20_000, generator=generator) < 0.5, gold, gold.roll(1))
    total = Confusion.empty(15)
    for g, p in zip(gold.split(77), predicted.split(77), strict=True):
        total = total + Confusion.of(g, p, 15)
    found = scores(total)
    assert found["f1"] == precision_recall_fscore_support(gold, predicted, average="macro")[2]
    assert found["f1_weighted"] == precision_recall_fscore_support(gold, predicted, average="weighted")[2]


def test_worked_by_hand():
    confusion = Confusion(torch.tensor([[3, 1], [2, 4]]))
    found = scores(confusion)
    assert found["accuracy"] == 7 / 10
    assert found["precision"] == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert found["recall"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert found["f1"] == pytest.approx((6 / 9 + 8 / 11) / 2)


def test_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="gold class -1"):
        Confusion.of(torch.tensor([-1]), torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="predicted class 2 is not in 0..1"):
        Confusion.of(torch.tensor([0]), torch.tensor([2]), 2)
    with pytest.raises(ValueError, match="must both be"):
        Confusion.of(torch.tensor([0, 1]), torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="no labelled rows"):
        scores(Confusion.empty(3))

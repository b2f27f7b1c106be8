"""Stratified parts against scikit-learn's, and where labels are rare."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from dtrain.data.splits import stratified_split


@pytest.mark.parametrize(("sizes", "share"), [([500, 303, 96, 17], 0.1), ([1000, 10, 52], 0.25), ([70, 53], 0.3)])
def test_label_counts_are_those_of_scikit_learn(sizes: list[int], share: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    ours = stratified_split(labels, {"valid": share}, seed=5)["valid"]
    theirs = train_test_split(np.arange(len(labels)), test_size=round(len(labels) * share), stratify=labels)[1]
    assert np.bincount(labels[ours]).tolist() == np.bincount(labels[theirs]).tolist()


@settings(deadline=None)
@example([0, 0, 0, 0, 1, 2], 0.5, 0.25)  # labels 1 and 2 have none to give, and 0 does not give it for them
@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.floats(0.01, 0.6), st.floats(0.01, 0.39))
def test_every_row_in_one_part_and_every_label_in_training(values: list[int], valid: float, test: float) -> None:
    labels = np.array(values)
    parts = stratified_split(labels, {"valid": valid, "test": test}, seed=1)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    assert set(labels[parts["train"]]) == set(values)
    for part, share in (("valid", valid), ("test", test)):
        if part in parts:
            counts = np.bincount(labels[parts[part]], minlength=7)
            assert (counts < np.bincount(labels, minlength=7) * share + 1).all()
            assert (np.diff(parts[part]) > 0).all()


def test_the_seed_decides_and_nothing_else() -> None:
    labels = np.arange(1000) % 5
    first, again = (stratified_split(labels, {"valid": 0.1}, seed=7)["valid"] for _ in range(2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != stratified_split(labels, {"valid": 0.1}, seed=8)["valid"].tolist()


def test_few_rows() -> None:
    parts = stratified_split(np.array([0, 0, 1]), {"valid": 0.1, "test": 0.1}, seed=0)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 2, "valid": 1}
    assert set(stratified_split(np.array([0, 1]), {"valid": 0.5}, seed=0)) == {"train"}

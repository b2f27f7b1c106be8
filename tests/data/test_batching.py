"""Every row once, whatever the world; budgets kept; an order of (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.data import inference_batches, share_of, training_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=400).map(lambda values: np.array(values, dtype=np.int32))
SEEDS = st.integers(0, 2**31 - 1)


def every_row_once(batches: list[np.ndarray], rows: int) -> bool:
    return sorted(int(row) for batch in batches for row in batch) == list(range(rows))


@settings(deadline=None)
@given(LENGTHS, SEEDS, st.integers(0, 9), st.integers(1, 40))
def test_batches_of_rows(lengths: np.ndarray, seed: int, epoch: int, size: int) -> None:
    batches = training_batches(lengths, seed, epoch, batch_size=size)
    assert every_row_once(batches, len(lengths))
    assert len(batches) == -(-len(lengths) // size)
    assert all(0 < len(batch) <= size for batch in batches)


@settings(deadline=None)
@given(LENGTHS, SEEDS, st.integers(0, 9), st.integers(1, 300))
def test_batches_of_tokens(lengths: np.ndarray, seed: int, epoch: int, budget: int) -> None:
    batches = training_batches(lengths, seed, epoch, batch_tokens=budget)
    assert every_row_once(batches, len(lengths))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)


@settings(deadline=None)
@given(LENGTHS, SEEDS, st.integers(1, 5), st.integers(1, 4), st.integers(0, 20))
def test_shares_of_a_batch(lengths: np.ndarray, seed: int, world: int, accumulation: int, step: int) -> None:
    for batch in training_batches(lengths, seed, 0, batch_size=17):
        shares = [share_of(batch, rank, world, accumulation, step) for rank in range(world)]
        assert all(len(share) == accumulation for share in shares)
        together = np.concatenate([micro for share in shares for micro in share])
        assert sorted(together) == sorted(batch)
        rows = [sum(map(len, share)) for share in shares]
        assert max(rows) - min(rows) <= 1


def test_odd_rows_move_from_rank_to_rank() -> None:
    batch = np.arange(4)
    totals = np.zeros(3, dtype=int)
    for step in range(3):
        totals += [sum(map(len, share_of(batch, rank, 3, 1, step))) for rank in range(3)]
    assert totals.tolist() == [4, 4, 4]


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 1000)

    def order(seed: int, epoch: int) -> list[int]:
        np.random.seed(epoch * 77)  # the global state has no say
        return np.concatenate(training_batches(lengths, seed, epoch, batch_size=8)).tolist()

    assert order(3, 1) == order(3, 1)
    assert order(3, 1) != order(3, 2)
    assert order(3, 1) != order(4, 1)


def test_training_order_is_kept_from_release_to_release() -> None:
    """A checkpoint resumes at a position: with another order it would silently see other rows."""
    batches = training_batches(np.array([5, 1, 4, 2, 3, 6, 7]), seed=12, epoch=1, batch_size=3)
    assert [batch.tolist() for batch in batches] == [[2, 0, 5], [1, 3, 4], [6]]


def test_batches_are_of_like_length_but_in_random_order() -> None:
    lengths = np.random.default_rng(1).integers(5, 50, 10_000)
    batches = training_batches(lengths, 0, 0, batch_tokens=2048)
    fill = np.mean([lengths[batch].mean() / lengths[batch].max() for batch in batches])
    assert fill > 0.95
    longest = [lengths[batch].max() for batch in batches]
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.2


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 2, "batch_tokens": 2}])
def test_one_kind_of_size(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="one of"):
        training_batches(np.array([1]), 0, 0, **sizes)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 300))
def test_inference_batches_are_those_of_a_plain_loop(lengths: np.ndarray, budget: int) -> None:
    expected: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        if not expected or (len(expected[-1]) + 1) * lengths[row] > budget:
            expected.append([])
        expected[-1].append(row)
    assert [batch.tolist() for batch in inference_batches(lengths, budget)] == expected

"""The order of batches of several tasks: how many are whose, and that it depends on seed, epoch and position alone."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain.data.mixing import MixedBatches, batch_counts, mixed_batches

ROWS = {"large": 90, "middle": 31, "small": 5}
LENGTHS = {name: np.arange(count) % 7 + 1 for name, count in ROWS.items()}
FIRST = {"large": 0, "middle": 90, "small": 121}


def task_of(batch: np.ndarray) -> str:
    (task,) = {next(n for n in reversed(FIRST) if row >= FIRST[n]) for row in batch.tolist()}
    return task


def epoch(number: int, exponent: float, seed: int = 3, **size: int) -> MixedBatches:
    return mixed_batches(LENGTHS, seed, number, exponent, **(size or {"batch_size": 4}))


@pytest.mark.parametrize(
    ("own", "exponent", "counts"),
    [
        ([23, 8, 2], 1.0, [23, 8, 2]),
        ([23, 8, 2], 0.0, [11, 11, 11]),
        ([8, 2], 0.5, [7, 3]),  # by the root: 2.83 to 1.41 of 10, 6.67 and 3.33
        ([16, 81], 0.25, [39, 58]),  # 2 to 3 of 97: 38.8 and 58.2
        ([1000, 1], 1.0, [1000, 1]),
        ([3, 1, 1, 1], 0.0, [2, 2, 1, 1]),
        ([5], 0.0, [5]),
    ],
)
def test_how_many_batches_are_whose(own: list[int], exponent: float, counts: list[int]) -> None:
    assert batch_counts(own, exponent) == counts


def test_every_task_has_a_batch() -> None:
    for own in ([500, 1, 1], [3, 2, 1], [1, 1, 1], [7, 300, 2]):
        for exponent in (1.0, 0.75, 0.3, 0.0):
            counts = batch_counts(own, exponent)
            assert sum(counts) == sum(own) and min(counts) >= 1


@pytest.mark.parametrize("size", [{"batch_size": 4}, {"batch_tokens": 20}])
def test_in_proportion_each_row_comes_once_an_epoch(size: dict[str, int]) -> None:
    for number in (0, 1):
        batches = epoch(number, 1.0, **size)
        assert sorted(np.concatenate(list(batches)).tolist()) == list(range(126))
        for batch in batches:
            task_of(batch)  # of one task


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    for exponent in (1.0, 0.75, 0.0):
        one, same, later, other = epoch(2, exponent), epoch(2, exponent), epoch(3, exponent), epoch(2, exponent, seed=4)
        assert all(map(np.array_equal, one, same)) and len(one) == len(same) == len(later) == len(other) == 33
        assert [task_of(b) for b in one] != [task_of(b) for b in later]
        assert [task_of(b) for b in one] != [task_of(b) for b in other]
        assert [b.tolist() for b in one[3:6]] == [one[place].tolist() for place in (3, 4, 5)]


@pytest.mark.parametrize("size", [{"batch_size": 4}, {"batch_tokens": 20}])
@pytest.mark.parametrize("exponent", [0.75, 0.0])
def test_other_shares_go_round_their_rows_evenly(exponent: float, size: dict[str, int]) -> None:
    """What a task does not come to in one epoch comes in the next; a small one comes again, each row as often."""
    times = np.zeros(126, dtype=int)
    for number in range(12):
        for batch in epoch(number, exponent, **size):
            times[batch] += 1
    for name, begin in FIRST.items():
        own = times[begin : begin + ROWS[name]]
        assert own.max() - own.min() <= 1
    assert times[FIRST["small"]] > times[FIRST["middle"]] > times[FIRST["large"]]


def test_tasks_of_one_size_are_in_orders_of_their_own() -> None:
    lengths = {"a": np.ones(40), "b": np.ones(40)}
    batches = list(mixed_batches(lengths, 0, 0, 1.0, batch_size=4))
    a = [tuple(batch) for batch in batches if batch[0] < 40]
    b = [tuple(batch - 40) for batch in batches if batch[0] >= 40]
    assert set(a) != set(b)

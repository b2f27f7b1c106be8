"""How many cores a launch uses."""

from __future__ import annotations

import os

import pytest

from dtrain.runtime.machines import usable_cores


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2", 2), ("64", 4), ("", 4), ("0", 4), ("many", 4)],
    ids=["fewer given", "more given than it may run on", "not given", "none", "no number"],
)
def test_a_launch_takes_the_cores_that_slurm_gave_it(
    given: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    assert usable_cores() == expected


def test_without_slurm_it_takes_all_it_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7})
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert usable_cores() == 2

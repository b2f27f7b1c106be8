"""A problem that every rank meets: which rank reports it, and with which exit code each rank ends."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
import torch.distributed as dist

from dtrain.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Stopped
from dtrain.runtime import distributed
from dtrain.runtime.distributed import World, leave, leave_together


class Store:
    """A store that counts as that of a process group does, or fails as if a rank were gone."""

    def __init__(self, gone: bool) -> None:
        self.gone, self.count = gone, 0

    def add(self, key: str, by: int) -> int:
        if self.gone:
            raise dist.DistNetworkError("connection closed")
        self.count += by
        return self.count


class Ranks:
    def __init__(self, store: Store) -> None:
        self.kept = store

    def store(self) -> Any:
        return self.kept


def leaving(ranks: Ranks) -> Stopped:
    with pytest.raises(Stopped) as caught, leave_together(cast(World, ranks)):
        raise Stopped("asked to stop")
    return caught.value


def test_the_first_tells_it_and_all_keep_their_code() -> None:
    ranks = Ranks(Store(gone=False))
    ends = [leaving(ranks) for _ in range(3)]
    assert [error.problems for error in ends] == [["asked to stop"], [], []]
    assert {error.exit_code for error in ends} == {EXIT_STOPPED}


@pytest.mark.parametrize("backend", ["nccl", "cuda:nccl,cpu:gloo", "gloo"])
@pytest.mark.parametrize("code", [EXIT_DONE, EXIT_STOPPED, EXIT_FAILED, EXIT_BAD_INPUT])
def test_a_rank_that_fails_does_not_wait_for_kernels_that_wait_for_others(
    monkeypatch: pytest.MonkeyPatch, backend: str, code: int
) -> None:
    """NCCL ends a process group when all queued kernels are done, which without the failed rank never happens."""

    class Ended(BaseException):
        pass

    def end(with_code: int) -> None:
        assert with_code == code
        raise Ended

    destroyed: list[bool] = []
    told: list[bool] = []
    monkeypatch.setattr(distributed, "stop_pulse", told.append)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: destroyed.append(True))
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended):
        leave(code)
    fails = code in (EXIT_FAILED, EXIT_BAD_INPUT)
    assert bool(destroyed) == (backend == "gloo" or not fails)
    assert told == [fails]  # the heartbeats of the other ranks end these, too


def test_a_rank_that_finds_rank_0_gone_still_leaves_as_asked() -> None:
    error = leaving(Ranks(Store(gone=True)))
    assert (error.exit_code, error.problems) == (EXIT_STOPPED, ["asked to stop"])

"""A problem that every rank meets: who tells it, and with which exit code each leaves."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch.distributed as dist

from dtrain.distributed import World, leave_together
from dtrain.errors import EXIT_STOPPED, Stopped


class Store:
    """Counts as a process group's store does, or fails as one whose rank is gone."""

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


def test_a_rank_that_finds_rank_0_gone_still_leaves_as_asked() -> None:
    error = leaving(Ranks(Store(gone=True)))
    assert (error.exit_code, error.problems) == (EXIT_STOPPED, ["asked to stop"])

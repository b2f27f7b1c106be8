"""What goes wrong on one rank before the first step ends the training on all ranks at once, and is told once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dtrain.engines.fsdp import built_once
from dtrain.errors import DtrainError, InputError
from dtrain.training.model_job import train_model
from dtrain.training.reach import freeze_unreached
from tests.knowledge.conftest import run_ranks  # which are threads


def fails_with(error: Exception) -> Callable[..., Any]:
    def fail(*given: Any) -> Any:
        raise error

    return fail


class Untrained(nn.Module):
    """In place of an objective; what it computes is `answer`."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.losses, self.answer = nn.Linear(2, 2), nn.Module(), answer

    def forward(self, batch: Any, progress: float) -> Any:
        return [self.answer(self.model.weight)]


def freezes(answer: Callable[..., Any], batch: Callable[[Any], Any]) -> Callable[[Any], None]:
    feed: Any = SimpleNamespace(first_rows=lambda: [0, 1], begin_step=lambda *step: None)

    def work(world: Any) -> None:
        mine = SimpleNamespace(**vars(feed), batch=lambda rows: batch(world))
        objective: Any = Untrained(answer)
        freeze_unreached(objective, mine, [], world, together=True)
        reached = [name for name, weight in objective.model.named_parameters() if weight.requires_grad]
        assert reached == ["weight"]

    return work


def on_second_rank(world: Any) -> None:
    if world.rank == 1:
        raise OSError("shard 3 is gone")


@pytest.mark.parametrize("error", [RuntimeError("boom"), torch.OutOfMemoryError("full"), InputError(["a", "b"])])
def test_an_error_of_rank_0_reaches_all_ranks(error: Exception) -> None:
    works = [lambda world: built_once(world, fails_with(error)), freezes(fails_with(error), lambda world: None)]
    for work in works:
        first, *others = run_ranks(3, work)  # type: ignore[arg-type]
        assert first is error
        for other in others:
            assert isinstance(other, DtrainError)
            # Bad input is the same everywhere, and of other errors rank 0 tells the user.
            assert other.problems == (["a", "b"] if isinstance(error, InputError) else [])


def test_an_error_of_another_rank_names_it() -> None:
    first, second = run_ranks(2, freezes(torch.sum, on_second_rank))
    assert isinstance(second, OSError)
    assert isinstance(first, DtrainError) and first.problems == ["rank 1: OSError: shard 3 is gone"]


def test_without_an_error_all_ranks_freeze_the_same() -> None:
    assert run_ranks(2, freezes(torch.sum, lambda world: None)) == [None, None]
    models: list[nn.Module] = []
    run_ranks(2, lambda world: models.append(built_once(world, lambda: nn.Linear(2, 2))))
    assert sorted(model.weight.is_meta for model in models) == [False, True]  # type: ignore[union-attr]


def test_a_teacher_that_cannot_be_built_says_why() -> None:
    job: Any = SimpleNamespace(spec=None, prepare=fails_with(InputError("teachers.t.model: wrong")))
    with pytest.raises(InputError, match=r"teachers\.t\.model: wrong"):
        train_model(job, None, None)  # type: ignore[arg-type]

"""A loss that has weights of its own: they are trained, checkpointed and resumed like the model's, and not published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dtrain.engines.optim import parameter_groups
from dtrain.errors import Stopped
from dtrain.losses import registry
from dtrain.losses.layers import Shapes
from dtrain.losses.objective import Objective, build_losses
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.training import Student
from dtrain.students.plan import why_not_stacked
from dtrain.teachers.sources import StoredTeacher
from dtrain.training import members
from dtrain.training.checkpoint import TENSORS
from dtrain.training.loop import fit
from tests.students.conftest import job as job
from tests.students.conftest import rows as rows
from tests.students.conftest import student

WIDTHS = {"features": 16, "teachers.features": 16, "training_rows": 40, "labelled_rows": 20, "paired_rows": 0}
TERMS = [{"type": "cross_entropy"}, {"type": "regressed_hint", "weight": 0.5, "bias": False}]


@pytest.fixture(autouse=True)
def regressed_hint(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hint through a trained linear map, registered for one test."""
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))

    @registry.register("features", "teachers.features", name="regressed_hint")
    class Hint(torch.nn.Module):
        def __init__(self, widths: Mapping[str, int], *, bias: bool = True) -> None:
            super().__init__()
            self.map = torch.nn.Linear(widths["features"], widths["teachers.features"], bias=bias)

        def forward(self, features: torch.Tensor, teachers: torch.Tensor) -> torch.Tensor:
            return (self.map(features) - teachers.mean(0)).square().mean(-1)

    yield


def learner(**changes: Any) -> Student:
    return student("s", **{"teachers": ["t"], "losses": TERMS, **changes})


def test_its_weights_are_trained_and_stay_out_of_the_model(job: Callable[..., Any]) -> None:
    one = job(learner(epochs=1), widths=WIDTHS)
    objective = one.engine.module
    before = objective.losses.stateful["regressed_hint"].map.weight.detach().clone()
    kept = one.engine.state()
    assert "weight/losses.stateful.regressed_hint.map.weight" in kept
    best, _, monitor = fit(one)
    monitor.close()
    assert not any("regressed_hint" in name for name in best)
    assert set(best) == set(objective.model.state_dict())
    assert not torch.equal(objective.losses.stateful["regressed_hint"].map.weight, before)
    one.close()


def test_modules_of_a_recipe_are_named_as_in_the_model_folder(job: Callable[..., Any]) -> None:
    section = {"lr": 0.01, "modules": {"classifier": 0.1, "losses.stateful.regressed_hint": 0.5}}
    one = job(learner(optimizer=section), widths=WIDTHS)
    rates = {group["lr"] for group in parameter_groups(one.engine.module, one.spec.optimizer)}
    assert rates == {0.01, 0.1, 0.5}
    assert set(Objective.folder_names(one.engine.module).values()) >= {"classifier.weight", "embedding.weight"}
    one.close()


ADVERSARY = {"type": "domain_adversary", "between": "labels", "hidden": 4, "strength": 0.5}


@pytest.mark.parametrize(
    ("asked", "term", "weight"),
    [
        (1, TERMS[1], "regressed_hint.map.weight"),
        (4, TERMS[1], "regressed_hint.map.weight"),
        (4, ADVERSARY, "domain_adversary.hidden.weight"),
    ],
)
def test_stopped_and_continued_bit_for_bit(
    job: Callable[..., Any], tmp_path: Path, asked: int, term: dict[str, Any], weight: str
) -> None:
    class Stop:
        reason = "test"

        def __init__(self, at: int) -> None:
            self.left = at

        def anywhere(self) -> bool:
            self.left -= 1
            return self.left < 0

    def ended(folder: str, stop: Any = None) -> dict[str, torch.Tensor]:
        one = job(learner(dropout=0.3, losses=[TERMS[0], term]), folder=folder, stop=stop, widths=WIDTHS)
        _, _, monitor = fit(one)
        monitor.close()
        return one.engine.state()

    undisturbed = ended("undisturbed")
    with pytest.raises(Stopped):
        ended("stopped", Stop(asked))
    (newest,) = sorted((tmp_path / "stopped" / "s" / "checkpoints").glob("step-*"))[-1:]
    saved = load_file(newest / TENSORS)
    assert {f"weight/losses.stateful.{weight}", f"optimizer/exp_avg/losses.stateful.{weight}"} <= saved.keys()
    again = ended("stopped")
    assert again.keys() == undisturbed.keys()
    assert all(torch.equal(again[name], undisturbed[name]) for name in again)


def test_at_weight_zero_its_weights_still_take_part() -> None:
    """DDP waits for a gradient of every parameter, also while a schedule has the term at zero."""
    spec = LossSpec.model_validate(TERMS[1] | {"weight": {"start": 0, "end": 1, "until": 1.0}})
    losses = build_losses([spec], WIDTHS)
    given = {"features": torch.randn(4, 16)}
    teachers = {"t": {"features": torch.randn(4, 16)}}
    total, sums, _ = losses(given, teachers, torch.ones(4, dtype=torch.bool), progress=0.0)
    total.backward()
    gradient = losses.stateful["regressed_hint"].map.weight.grad
    assert total == 0 and sums["regressed_hint"] > 0
    assert gradient is not None and not gradient.any()


def test_they_fit_the_teachers_of_their_own_term() -> None:
    """Whichever of several teachers comes last."""
    shapes = Shapes(outputs={"wide": {"features": 24}, "t": {"features": 16}, "narrow": {"features": 4}})
    terms = [LossSpec.model_validate(TERMS[1] | {"teachers": [name]}) for name in ("wide", "narrow", "t")]
    losses = build_losses(terms, {"features": 8, "labelled_rows": 2}, shapes)
    teachers = {name: {"features": torch.randn(4, width["features"])} for name, width in shapes.outputs.items()}
    total, sums, _ = losses({"features": torch.randn(4, 8)}, teachers, torch.ones(4, dtype=torch.bool))
    assert total > 0 and len(sums) == 3
    assert [one.map.out_features for one in losses.stateful.values()] == [24, 4, 16]


def test_the_widths_of_each_stored_teacher_are_known_by_its_name() -> None:
    stored: dict[str, Any] = {}
    for name, width in (("wide", 24), ("t", 16)):
        store: Any = SimpleNamespace(outputs=["features"], width=lambda kind, width=width: width)
        stored[name] = StoredTeacher(store)
    outputs = members._shapes(torch.nn.Linear(2, 2), stored, {}, 2).outputs
    assert outputs == {"wide": {"features": 24}, "t": {"features": 16}}


def test_it_is_not_stacked() -> None:
    assert why_not_stacked(learner(), "fp32", "classification") == "its losses have weights of their own"

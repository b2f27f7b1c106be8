"""Adversarial imitation in its published stages: classifier frozen, discriminator alone, both in turn; stopped and continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dtrain.errors import DtrainError
from dtrain.models import load
from dtrain.runfolder import read_json
from dtrain.runtime.distributed import World
from dtrain.stages import distill, finetune, precompute, prepare
from dtrain.students import phases
from dtrain.training import loop, model_job
from dtrain.training.model_job import LOSSES
from dtrain.training.state import TrainState
from tests.students.informed import TAGGER, plan_of, write_rows

IMITATION = {"type": "imitation", "hidden": 5, "weight": 0.5}
GOLD = {"type": "tag_likelihood"}
PHASES = [
    {"name": "classifier", "losses": [GOLD], "freeze": ["emissions", "crf"]},
    {"name": "discriminator", "losses": [IMITATION], "train": [], "epochs": 2},
    {"name": "adversarial", "losses": [GOLD, IMITATION], "epochs": 2},
]
STUDENT = {
    "name": "s",
    "teachers": ["informed"],
    "model": {**TAGGER, "dropout": 0.2, "classifier": "informed"},
    "phases": PHASES,
    "checkpoint_every": 3,
    "epochs": 1,
}
State = dict[str, torch.Tensor]


def reversal(student: dict[str, Any]) -> dict[str, Any]:
    last = {**PHASES[2], "losses": [GOLD, {**IMITATION, "mode": "reversal", "strength": 0.5}]}
    return {**student, "phases": [*PHASES[:2], last]}


def still(student: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Switch off dropout, which each micro-batch would draw anew."""
    return {**student, "model": {**student["model"], "dropout": 0.0}, **keys}


STUDENTS = [
    STUDENT,
    reversal({**STUDENT, "name": "turned"}),
    still(STUDENT, name="whole"),
    still(STUDENT, name="cut", accumulation=3, answers="online"),
]


class Watched:
    """Records a run: the state at the end of each phase, whose weights changed in each step, and the losses' weights at
    the beginning of phases.
    """

    def __init__(self) -> None:
        self.ended: dict[str, State] = {}
        self.moved: dict[str, list[set[str]]] = {}
        self.begun: dict[str, State] = {}
        self.fails_at: tuple[str, int] | None = None

    def run(self, plan: Any, world: World) -> None:
        finish, step, go_on = model_job._finish, loop.train_step, phases._go_on

        def finished(built: Any, of: Any, world: World) -> Any:
            self.ended[of.job.title] = of.job.engine.state()
            return finish(built, of, world)

        def watched(state: TrainState) -> None:
            title, engine = state.job.title, state.job.engine
            if self.fails_at is not None and (title, state.position.step) == self.fails_at:
                raise RuntimeError("too hot")
            before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
            step(state)
            after = engine.module.named_parameters()
            moved = {name.split(".")[0] for name, p in after if not torch.equal(p, before[name])}
            self.moved.setdefault(title, []).append(moved)

        def began(losses: Callable[..., Any], place: Any, model: torch.nn.Module) -> Any:
            found = go_on(losses, place, model)
            self.begun[f"{place.student.name}/{place.phase.name}"] = {
                k: v.clone() for k, v in found.state_dict().items()
            }
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_job, "_finish", finished)
            patch.setattr(loop, "train_step", watched)
            patch.setattr(phases, "_go_on", began)
            for stage in (prepare, finetune, precompute, distill):
                stage.run(plan.recipe, world, plan.folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("imitation")
    write_rows(found)
    return found


def plan(root: Path, name: str, *students: dict[str, Any]) -> Any:
    return plan_of(root, name, *students, knowledge={"dtype": "float32"})


@pytest.fixture(scope="module")
def done(root: Path, world: World) -> tuple[Any, Watched]:
    watched, made = Watched(), plan(root, "whole", *STUDENTS)
    watched.run(made, world)
    return made, watched


def test_each_stage_does_its_part(done: tuple[Any, Watched]) -> None:
    made, watched = done
    teacher = load(made.folder.model("teachers", "informed")).state_dict()
    places = [made.folder.phase("s", name) for name in ("1-classifier", "2-discriminator")]
    first, second = (load(place).state_dict() for place in places)
    classifier = [name for name in teacher if name.startswith(("emissions", "crf"))]
    assert classifier and all(torch.equal(first[name], teacher[name]) for name in classifier)
    assert all(torch.equal(first[name], second[name]) for name in first)
    last = load(made.folder.model("students", "s")).state_dict()
    assert not all(torch.equal(second[name], last[name]) for name in last)
    assert watched.moved["student s, phase 1 (classifier)"] == [{"model"}] * 5
    assert watched.moved["student s, phase 2 (discriminator)"] == [{"losses"}] * 10
    assert watched.moved["student s, phase 3 (adversarial)"] == [{"losses"}, {"model"}] * 5
    assert watched.moved["student turned, phase 3 (adversarial)"] == [{"losses", "model"}] * 10


def test_the_discriminator_goes_on_and_stays_out_of_the_model(done: tuple[Any, Watched]) -> None:
    made, watched = done
    kept = load_file(made.folder.phase("s", "2-discriminator") / LOSSES)
    end = watched.ended["student s, phase 2 (discriminator)"]
    assert kept and all(torch.equal(weight, end[f"weight/losses.{name}"]) for name, weight in kept.items())
    begun = watched.begun["s/adversarial"]
    assert begun.keys() == kept.keys() and all(torch.equal(begun[name], kept[name]) for name in kept)
    assert not all(torch.equal(watched.begun["s/discriminator"][name], kept[name]) for name in kept)
    final = made.folder.model("students", "s")
    assert not (final / LOSSES).exists() and not (made.folder.phase("s", "1-classifier") / LOSSES).exists()
    assert not any("stateful" in name for name in load_file(final / "model.safetensors"))
    assert "trained_parameters" in read_json(made.folder.phase("s", "1-classifier") / "metrics.json")


def difference(watched: Watched, one: str, other: str) -> float:
    """The largest difference between the final weights of two students, including those of their losses, relative to
    the distance that these have moved.
    """
    a, b = (watched.ended[f"student {name}, phase 3 (adversarial)"] for name in (one, other))
    begin = watched.ended[f"student {one}, phase 1 (classifier)"]
    names = [name for name in a if name.startswith("weight/") and a[name].is_floating_point()]
    moved = max(float((a[name] - begin[name]).abs().max()) for name in names if name in begin)
    return max(float((a[name] - b[name]).abs().max()) for name in names) / moved


def test_micro_batches_and_where_the_teacher_answers_change_nothing(done: tuple[Any, Watched]) -> None:
    _, watched = done
    assert difference(watched, "whole", "cut") < 1e-4
    assert difference(watched, "s", "turned") > 1e-2


def test_stopped_in_each_stage_and_continued_bit_for_bit(done: tuple[Any, Watched], root: Path, world: World) -> None:
    _, whole = done
    watched = Watched()
    one, other, both = (plan(root, "stopped", *these) for these in (STUDENTS[:1], STUDENTS[1:2], STUDENTS[:2]))
    for made, name, number, phase, at in (
        (one, "s", 1, "classifier", 4),
        (one, "s", 2, "discriminator", 7),
        (one, "s", 3, "adversarial", 5),  # it continues from step 3, in which the student is trained
        (other, "turned", 3, "adversarial", 7),
    ):
        watched.fails_at = (f"student {name}, phase {number} ({phase})", at)
        with pytest.raises(DtrainError, match="every student failed"):
            watched.run(made, world)
        assert list(made.folder.checkpoints("students", name).glob(f"{number}-{phase}/step-*"))
    watched.fails_at = None
    watched.run(both, world)
    for student in ("s", "turned"):
        for phase in ("2 (discriminator)", "3 (adversarial)"):
            own, expected = (each.ended[f"student {student}, phase {phase}"] for each in (watched, whole))
            assert own.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in own.items())
            assert any(name.startswith("optimizer/exp_avg/losses.stateful.imitation") for name in own)

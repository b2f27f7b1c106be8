"""The phases of a student as jobs, and how far it has come in them.

    phases/<student>/1-general/ ──▶ phases/<student>/2-task/ ──▶ students/<student>/      what each publishes
    checkpoints/students/<student>/1-general/   tensorboard/students/<student>/1-general/

Epochs and steps of a student are counted over all of its phases: a phase begins where the one before would end by its
`epochs`, whether patience ended it earlier or not.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dtrain.data.files import resolve_path
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError
from dtrain.losses.lasting import lasting_losses
from dtrain.losses.objective import Objective
from dtrain.models import build, load
from dtrain.plan import Plan
from dtrain.recipe import Recipe
from dtrain.recipe.models import EncoderSpec, encoder_of
from dtrain.recipe.phases import StudentPhase, asks_for_masks, reads_head
from dtrain.recipe.training import Student
from dtrain.runfolder import RunFolder, is_done, read_json
from dtrain.runtime.distributed import World
from dtrain.tasks.rules import rules_of
from dtrain.training.checkpoint import Checkpoints
from dtrain.training.job import Position
from dtrain.training.kept_epochs import keeper
from dtrain.training.model_job import LOSSES, ModelJob, Prepared
from dtrain.training.monitor import log_hyperparameters
from dtrain.training.reach import freeze, trained_names

# Gives what a phase trains with on its own rows, from what the student trains with on rows of its task.
OnRows = Callable[[Prepared], Prepared]
History = list[dict[str, Any]]


@dataclass(frozen=True)
class PhasePlace:
    """One phase of a student: where it stands among the others, and where its files are."""

    folder: RunFolder
    student: Student
    number: int  # from 0

    @property
    def phase(self) -> StudentPhase:
        assert self.student.phases is not None
        return self.student.phases[self.number]

    @property
    def name(self) -> str:
        """The name of the phase's folders."""
        return f"{self.number + 1}-{self.phase.name}"

    @property
    def is_last(self) -> bool:
        return self.number == len(self.student.phases or []) - 1

    @property
    def before(self) -> PhasePlace | None:
        return replace(self, number=self.number - 1) if self.number else None

    @property
    def first_epoch(self) -> int:
        """The epochs of the phases before it."""
        return sum(training.epochs for training in self.student.trainings[: self.number])

    @property
    def model(self) -> Path:
        """The folder that it publishes."""
        name = self.student.name
        return self.folder.model("students", name) if self.is_last else self.folder.phase(name, self.name)

    @property
    def checkpoints(self) -> Path:
        return self.folder.checkpoints("students", self.student.name, self.name)

    @property
    def tensorboard(self) -> Path:
        return self.folder.tensorboard("students", self.student.name, self.name)

    @property
    def held_out(self) -> bool:
        """Whether it is scored on plain text that is held out, and not on rows of the task."""
        return self.phase.on_plain_text and asks_for_masks(self.phase.terms)

    def earlier(self) -> History:
        """The history of the phases before it, in the student's epochs and steps."""
        history: History = read_json(self.before.model / "history.json") if self.before else []
        return history

    def counted(self, own: History) -> History:
        """The history of the phases before it, followed by its `own` in the student's epochs and steps."""
        earlier = self.earlier()
        steps = max((entry["step"] for entry in earlier), default=0)
        held_out = {"split": "held_out"} if self.held_out else {}
        later = [
            {
                **entry,
                **(held_out if entry["split"] == "valid" else {}),
                "step": entry["step"] + steps,
                "epoch": round(entry["epoch"] + self.first_epoch, 4),
            }
            for entry in own
        ]
        return [*earlier, *({**entry, "phase": self.phase.name} for entry in later)]


# Makes the job of a phase, from: the student with the phase's settings, the phase, its fingerprint, the seed of its
# order of rows, and the epoch after which it pauses.
MakeJob = Callable[[Student, PhasePlace, str, int, int | None], tuple[ModelJob, OnRows]]


def places(folder: RunFolder, student: Student) -> list[PhasePlace]:
    """All phases of a student, in order."""
    return [PhasePlace(folder, student, number) for number in range(len(student.phases or []))]


def phase_jobs(student: Student, plan: Plan, make: MakeJob, pause: int | None) -> list[ModelJob]:
    """The jobs of a student's phases, in order; those that begin at epoch `pause` or later are left out."""
    found = []
    for place, training in zip(places(plan.folder, student), student.trainings, strict=True):
        if pause is not None and place.first_epoch >= pause:
            break
        ends = place.first_epoch + training.epochs
        order = (plan.order(student) + place.number) % 2**31
        stop = pause - place.first_epoch if pause is not None and pause < ends else None
        job, rows = make(training, place, plan.phase(student.name, place.number), order, stop)
        job.title = f"{job.title}, phase {place.number + 1} ({place.phase.name})"
        job.where = f"students.{student.name}.phases.{place.number}"
        job.final, job.checkpoints, job.tensorboard = place.model, place.checkpoints, place.tensorboard
        unscored = job.keep_last and not place.held_out  # no validation row has the side that it reads
        job.keep_last, job.freezes = unscored or place.phase.keep == "last", True
        job.hands_on = not place.is_last
        if student.keep_epochs:
            job.keeps = keeper(plan.folder.epochs(student.name), job.identity, place.first_epoch)
        job.prepare = functools.partial(_prepare, job.prepare, place, rows)
        root = plan.folder.tensorboard("students", student.name)
        log = functools.partial(log_hyperparameters, root, student, student.all_losses)
        job.log_settings = log if place.is_last else lambda metrics: None
        found.append(job)
    return found


def forget_curves(student: Student, plan: Plan, folder: RunFolder) -> None:
    """If the first phase has not begun yet, remove the curves of an earlier student of this name."""
    first = places(folder, student)[0]
    if not is_done(first.model, plan.phase(student.name, 0)) and not first.checkpoints.exists():
        shutil.rmtree(folder.tensorboard("students", student.name), ignore_errors=True)


def history_at(
    student: Student, plan: Plan, folder: RunFolder, epoch: int, identity: Callable[[str], str]
) -> History | None:
    """The history of a student that has come to `epoch`; None before.

    Args:
        identity: gives the identity of a training's checkpoints, from its fingerprint.
    """
    for place in reversed(places(folder, student)):
        fingerprint = plan.phase(student.name, place.number)
        ends = place.first_epoch + student.trainings[place.number].epochs
        if ends >= epoch and is_done(place.model, fingerprint):
            history: History = read_json(place.model / "history.json")
            return history
        for state in Checkpoints(place.checkpoints, identity(fingerprint)).states():
            if place.first_epoch + state["position"]["epoch"] >= epoch:
                return place.counted(state["position"]["history"])
    return None


def unknown_parameters(recipe: Recipe) -> list[str]:
    """Phases that name parameters or layers which their student's model does not have, a line for each.

    Models are built without weights. A pretrained model whose folder is not on this machine is not checked.
    """
    problems = []
    for student in recipe.students:
        phases = [(number, phase) for number, phase in enumerate(student.phases or []) if phase.chooses]
        names = _parameter_names(student, recipe) if phases else None
        for number, phase in phases:
            try:
                trained_names(phase, names or [])
            except InputError as error:
                where = f"students.{student.name}.phases.{number}"
                problems += [f"{where}.{problem}" for problem in error.problems if names is not None]
    return problems


def check_sharding(recipe: Recipe, world: World) -> None:
    """Raise InputError for what ZeRO cannot do: freeze weights in 16 bits, of which it keeps no exact copy, or step the
    model and the weights of its losses in turn.
    """
    for student in recipe.students:
        precision = resolve_precision(student.precision, world.device, f"students.{student.name}.precision")
        if student.parallel != "data" or world.sharding.kind != "zero":
            continue
        for loss in student.all_losses:
            if loss.loss.turns is not None and loss.loss.turns(loss.parameters()):
                raise InputError(
                    f"students.{student.name}: {loss.type} lets the model and its own weights learn in turn, which ZeRO steps "
                    "together (allowed: its mode: reversal, or a launch with ddp or fsdp2)"
                )
        if precision == "fp32":
            continue
        for number, phase in enumerate(student.phases or []):
            if phase.chooses or not reads_head(phase.terms) or phase.tasks not in (None, student.tasks):
                raise InputError(
                    f"students.{student.name}.phases.{number}: freezes weights, which ZeRO in {precision} would round "
                    "(allowed: precision: fp32, or a launch with ddp or fsdp2)"
                )


def _parameter_names(student: Student, recipe: Recipe) -> list[str] | None:
    """The names of the parameters of a student's model; None where they are not known yet."""
    spec = student.model.model_copy(deep=True)
    encoder = encoder_of(spec)
    if encoder is not None and encoder.pretrained:
        layers = _layers(encoder, recipe)
        if layers is None:
            return None
        encoder.pretrained, encoder.layers = None, layers
    with torch.device("meta"):
        try:
            model = build(spec, vocabulary=8, labels=["a", "b"], pad_id=0, heads=_heads(student, recipe))
        except ValueError:  # the model needs its tokenizer, which does not exist yet
            return None
    return list(Objective.folder_names(model).values())


def _heads(student: Student, recipe: Recipe) -> dict[str, dict[str, Any]] | None:
    """The heads of a student of several tasks, by task; None for a student of one task."""
    if student.tasks is None:
        return None
    kinds = {task: rules_of(recipe.of_task(task).data.task) for task in student.tasks}
    return {task: {"tags": kind.tags, "labels": ["O", "S-a"], "config": {}} for task, kind in kinds.items()}


def _layers(encoder: EncoderSpec, recipe: Recipe) -> int | None:
    """The number of layers of a pretrained transformer; None where its folder is not on this machine."""
    if encoder.made_here and recipe.pretrain is not None:
        return recipe.pretrain.model.shape()[1]
    try:
        return int(read_json(resolve_path(str(encoder.pretrained)) / "config.json")["num_hidden_layers"])
    except (OSError, ValueError, KeyError):
        return None


def _prepare(prepare: Callable[[], Prepared], place: PhasePlace, rows: OnRows) -> Prepared:
    """What a phase trains with: what any student does, beginning with the weights that the phase before it kept."""
    plain = prepare()
    prepared = rows(replace(plain, make=functools.partial(_start, plain.make, place)))
    prepared = replace(prepared, losses=functools.partial(_go_on, prepared.losses, place))

    def metrics(position: Position) -> dict[str, Any]:
        return prepared.metrics(position) | _over_all(place, position)

    return replace(
        prepared,
        metrics=metrics,
        history=place.counted,
        remarks=prepared.remarks if place.is_last else lambda evaluations, kept: [],
    )


def _go_on(losses: Callable[[nn.Module], nn.Module], place: PhasePlace, model: nn.Module) -> nn.Module:
    """Build the losses of a phase. Lasting losses begin with the weights of the latest earlier phase that has them."""
    found = losses(model)
    for name, module in lasting_losses(found).items():
        before = place.before
        while before is not None:
            weights = load_file(before.model / LOSSES) if (before.model / LOSSES).is_file() else {}
            own = {key.removeprefix(f"{name}."): w for key, w in weights.items() if key.startswith(f"{name}.")}
            if own:
                _take_over(module, own, f"students.{place.student.name}.phases.{place.number}.losses", name, before)
                break
            before = before.before
    return found


def _take_over(module: nn.Module, weights: dict[str, Tensor], key: str, name: str, before: PhasePlace) -> None:
    shapes = {key: weight.shape for key, weight in module.state_dict().items()}
    if shapes != {key: weight.shape for key, weight in weights.items()}:
        raise InputError(
            f"{key}: {name.rpartition('.')[2]} goes on with the weights of phase {before.phase.name}, which have other "
            "shapes; give both the same `hidden`"
        )
    module.load_state_dict(weights)


def _start(make: Callable[[], nn.Module], place: PhasePlace) -> nn.Module:
    model = make()
    if place.before is not None:
        model.load_state_dict(load(place.before.model).state_dict())
    try:
        freeze(model, place.phase)
    except InputError as error:
        where = f"students.{place.student.name}.phases.{place.number}"
        raise InputError([f"{where}.{problem}" for problem in error.problems]) from None
    return model


def _over_all(place: PhasePlace, position: Position) -> dict[str, Any]:
    """The metrics that are counted over all phases up to this one, and those of each phase."""
    earlier = read_json(place.before.model / "metrics.json") if place.before else {"phases": []}
    training = place.student.trainings[place.number]
    parts = training.parts.values()
    losses = [loss.type for part in parts for loss in part.losses or []]
    of_tasks = {} if training.tasks is None else {"tasks": list(training.parts)}
    scores = next(h for h in position.history if h["split"] == "valid" and h["step"] == position.best_step)
    own = {
        "name": place.phase.name,
        **of_tasks,
        "rows": list(dict.fromkeys(row for part in parts for row in part.rows or [])),
        "losses": losses if training.tasks is None else list(dict.fromkeys(losses)),
        "epochs": position.epoch,
        "steps": position.step,
        "seconds": round(position.seconds, 3),
        "kept": place.phase.keep,
        "split": "held_out" if place.held_out else "valid",
        "epoch": position.best_epoch,
        "scores": {name: value for name, value in scores.items() if name not in ("step", "epoch", "split")},
    }
    phases = [*earlier["phases"], own]
    steps = sum(phase["steps"] for phase in earlier["phases"])
    return {
        "best_epoch": round(position.best_epoch + place.first_epoch, 4),
        "best_step": position.best_step + steps,
        "steps": position.step + steps,
        "seconds": round(sum(phase["seconds"] for phase in phases), 3),
        "phases": phases,
    }

"""The losses of a student: terms of a weighted sum, their weights, and how one term weighs several teachers."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from dtrain.errors import suggest
from dtrain.losses import coerce_parameters, find_loss, loss_names
from dtrain.losses.ramp import part_of_way
from dtrain.losses.registry import Loss
from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.values import Closed, NonNegative, Positive, refuse_boolean


class WeightSchedule(Closed):
    """A weight that goes from `start` to `end` over a share of training, and stays there."""

    start: NonNegative  # the weight at the first step
    end: NonNegative = 0.0  # the weight from `until` on
    shape: Literal["linear", "cosine", "step"] = "linear"  # how it goes there; step: `start` up to `until`, then `end`
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # share of all steps at which `end` is reached

    def at(self, progress: float) -> float:
        """The weight after a share `progress` of all steps."""
        return self.start + (self.end - self.start) * part_of_way(progress, self.until, self.shape)


Weight = Annotated[
    Annotated[NonNegative, Tag("float")] | Annotated[WeightSchedule, Tag("WeightSchedule")],
    Discriminator(lambda value: "WeightSchedule" if isinstance(value, dict | WeightSchedule) else "float"),
]


class Weighting(Closed):
    """How a loss weighs its teachers, for each row (losses/weighting.py); the weights sum to 1."""

    # how the weights are found (`dtrain help several-teachers`)
    type: Literal["average", "fixed", "confidence", "entropy", "gradient"]
    weights: dict[str, Positive] = {}  # for type fixed: a number for each teacher, divided by their sum
    limit: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # for type gradient: the largest weight of one teacher

    @model_validator(mode="before")
    @classmethod
    def just_a_type(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def only_what_it_reads(self) -> Weighting:
        if (self.type == "fixed") != bool(self.weights):
            raise ValueError("weights: a number for each teacher, for type 'fixed' and no other")
        if self.limit != 1.0 and self.type != "gradient":
            raise ValueError("limit: is only for type 'gradient'")
        return self

    def check(self, teachers: list[str], context: Context, report: Reporter) -> None:
        """Report why these teachers (at least one) cannot be weighed in this way, if so."""
        task = context.task
        if self.type not in task.weightings:
            allowed = ", ".join(task.weightings)
            report("", f"{self.type!r} is not for task {task.name!r} (allowed: {allowed})")
        if self.type == "fixed" and set(self.weights) != set(teachers):
            found = ", ".join(self.weights)
            report("weights", f"must name its teachers, found {found} (they are {', '.join(teachers)})")
        if len(teachers) > 1 and self.limit * len(teachers) < 1:
            report("limit", f"{self.limit:g} x {len(teachers)} teachers is under 1, which weights sum to")


class LossSpec(BaseModel):
    """One term of a weighted sum; keys beyond these are the loss function's own parameters."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    type: str  # which loss (`dtrain help losses`); its own parameters stand beside these keys
    weight: Weight = 1.0  # weight of the term in the sum: a number, or a schedule
    # how several teachers are weighed; default: the loss's own way (`dtrain help losses`)
    weighting: Weighting | None = None
    # which of the student's teachers, by name or pattern; default: all
    teachers: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def no_boolean_as_weight(cls, values: Any) -> Any:
        refuse_boolean("weight", values.get("weight") if isinstance(values, dict) else None, float)
        return values

    @model_validator(mode="after")
    def known_loss(self) -> LossSpec:
        given = self.model_extra or {}
        checked = coerce_parameters(self.type, given)
        # Defaults are not filled in yet: a grid may still give the term another type, with other parameters.
        self.__pydantic_extra__ = {name: checked[name] for name in given}
        return self

    def fill(self) -> None:
        """Fill in the defaults of the loss's own parameters."""
        self.__pydantic_extra__ = self.parameters()

    def parameters(self) -> dict[str, Any]:
        """All parameters of the loss, defaults included."""
        return coerce_parameters(self.type, self.model_extra or {})

    @property
    def loss(self) -> Loss:
        """The registered loss."""
        return find_loss(self.type)

    @property
    def unlabelled_until(self) -> float:
        """The share of training after which the loss of a row without a label is 0, whatever the weight."""
        anneals = {"labelled", "progress"} <= set(self.loss.needs)  # towards the labels
        return float(self.parameters().get("until", 1.0)) if anneals else 1.0

    def weight_at(self, progress: float) -> float:
        """The weight of the term after a share `progress` of all steps."""
        return self.weight.at(progress) if isinstance(self.weight, WeightSchedule) else self.weight

    def resolve(self, teachers: list[str], context: Context, report: Reporter) -> None:
        """Choose among the student's teachers, and check that the loss fits them and the task."""
        task = context.task.name
        if task not in self.loss.tasks:
            report("", f"is not for task {task!r} (allowed: {', '.join(loss_names(task))})")
        elif self.loss.teacher_output is None:
            if self.teachers or self.weighting:
                report("", "takes no teachers")
        elif not teachers:
            of = f" of task {context.name!r}" if context.name else ""
            report("", f"needs a teacher{of}, and the student has none")
        else:
            self.teachers = choose_teachers(self.teachers, teachers, context, report)
            if self.weighting is not None and self.teachers:
                self.weighting.check(self.teachers, context, report.at("weighting"))


def choose_teachers(patterns: list[str] | None, names: list[str], context: Context, report: Reporter) -> list[str]:
    """The names that match some pattern, in the patterns' order; all of them where no pattern is given."""
    if patterns is None:
        return list(names)
    chosen: list[str] = []
    for pattern in patterns:
        matched = matching(pattern, names, context)
        if not matched:
            allowed = ", ".join(names) or "none are defined"
            others = matching(pattern, [name for name in context.elsewhere if name not in names], context)
            hint = f": {others[0]} is of task {context.elsewhere[others[0]]!r}" if others else suggest(pattern, names)
            report("teachers", f"no teacher {pattern!r}{hint} (allowed: {allowed})")
        chosen += [n for n in matched if n not in chosen]
    return chosen


def matching(pattern: str, names: Iterable[str], context: Context) -> list[str]:
    """The names that a name or a pattern stands for.

    The name of a teacher with a grid stands for all teachers that it is expanded to, if no other has exactly this name.
    """
    if pattern in names:
        return [pattern]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern) or context.expanded.get(name) == pattern]


def default_losses(context: Context, taught: bool, exits: bool) -> list[LossSpec]:
    """The losses of a student without `losses`: labels and teachers count equally."""
    on_labels, on_teachers = context.task.losses
    if exits:
        both = [LossSpec(type="exits_cross_entropy", weight=0.5), LossSpec(type="exits_distillation", weight=0.5)]
        return both + ([LossSpec(type=on_teachers, weight=0.5)] if taught else [])
    if not taught:
        return [LossSpec(type=on_labels)]
    return [LossSpec(type=name, weight=0.5) for name in (on_labels, on_teachers)]

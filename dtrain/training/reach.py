"""Which parameters are trained: of those that a phase names, the ones that its losses depend on.

A parameter without a gradient is left alone by every optimizer, so freezing what no loss reaches changes no number. But
DDP waits for the gradient of each parameter, and ZeRO would let those that have none decay.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from dtrain.errors import InputError
from dtrain.losses.objective import LossSum, Objective
from dtrain.models.multi_task import MultiTask
from dtrain.recipe.losses import LossSpec, WeightSchedule
from dtrain.recipe.phases import StudentPhase
from dtrain.runtime.distributed import World
from dtrain.training.feed import Feed

_EMBEDDINGS = re.compile(r"(^|\.)embeddings\.")
_LAYER = re.compile(r"(^|\.)encoder\.layer\.(\d+)\.")


def trained_names(phase: StudentPhase, names: Iterable[str]) -> set[str]:
    """Those of a model's parameters that a phase trains. Names are those of the model folder.

    Raises:
        InputError: naming the phase's key, where no parameter has the prefix, where the model has no such layer, or
            where no parameter would be left to train.
    """
    known = list(names)
    if phase.up_to_layer is not None:
        layers = {int(found[2]) for name in known if (found := _LAYER.search(name))}
        if not layers or phase.up_to_layer > max(layers) + 1:
            raise InputError(f"up_to_layer: {phase.up_to_layer} is more than the {len(layers)} layers of the model")
        below = (name for name in known if _LAYER.search(name) is None and _EMBEDDINGS.search(name))
        inside = ((name, found) for name in known if (found := _LAYER.search(name)))
        return {*below, *(name for name, found in inside if int(found[2]) < phase.up_to_layer)}
    key = "train" if phase.train is not None else "freeze"
    chosen: set[str] = set()
    for prefix in phase.train or phase.freeze or []:
        matched = {name for name in known if name == prefix or name.startswith(prefix.rstrip(".") + ".")}
        if not matched:
            tops = ", ".join(sorted({name.split(".")[0] for name in known}))
            raise InputError(f"{key}: no parameter starts with {prefix!r} (the model has {tops})")
        chosen |= matched
    if key == "train":
        return chosen
    if chosen == set(known):
        raise InputError("freeze: leaves no parameter of the model to be trained")
    return set(known) - chosen


def freeze(model: nn.Module, phase: StudentPhase) -> None:
    """Freeze parameters that a phase does not train and heads of other tasks; raises as `trained_names` does."""
    if phase.chooses:
        names = Objective.folder_names(model)
        trained = trained_names(phase, names.values())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(names[name] in trained)
    if isinstance(model, MultiTask) and phase.tasks is not None:
        model.freeze_heads(phase.tasks)


def freeze_unreached(
    objective: Objective, feed: Feed, losses: Sequence[LossSpec], world: World, *, together: bool
) -> None:
    """Freeze the model's parameters that no loss depends on at any moment of training (a collective if `together`).

    A backward pass of one row (for several tasks, one row of each) finds them. With `together` rank 0 makes it and
    tells the others, which may hold the model's structure without weights.

    Args:
        objective: one that is not `together`, as one rank alone computes it.
        losses: the terms; their schedules give the moments of training at which it is tried.

    Raises:
        InputError: no parameter is left; or `together`, and at some moment the losses reach fewer parameters than at
            another.
        Exception: of the backward pass; with `together` other ranks raise a DtrainError, see `World.together`.
    """
    if not any(parameter.requires_grad for parameter in objective.model.parameters()):
        return  # a phase that trains the weights of its losses alone
    reached: dict[tuple[float, int], set[str]] = {}
    ever: set[str] = set()

    def look(first: int) -> tuple[dict[float, set[str]], set[str]]:
        row = np.array([first])
        feed.begin_step(row, 0, 0)
        batch = feed.batch(row)  # on every rank: a sharded teacher answers on all of them
        if together and world.rank > 0:
            return {}, set()
        objective.to(world.device).train()
        moments = sorted(_moments(losses))
        always = {moment: _reached(objective, batch, moment, whole=True) for moment in moments}
        return always, set().union(*(_reached(objective, batch, moment, whole=False) for moment in moments))

    for first in feed.first_rows():
        # The ranks agree after every row: one that has failed must not be missing where a sharded teacher answers.
        always, sometimes = (world.together(functools.partial(look, first)) if together else [look(first)])[0]
        reached |= {(moment, first): names for moment, names in always.items()}
        ever |= sometimes
    if not ever:
        raise InputError("losses: none depends on a parameter of the model that the phase lets be trained")
    for (moment, _), names in reached.items():
        if together and not ever <= names:
            when = f"at {moment:.3g} of the phase" if moment else "at its beginning"
            raise InputError(
                f"losses: {when} none reaches {sorted(ever - names)[0]}, which others train; with parallel: data every "
                "step must reach all that the phase trains"
            )
    for name, parameter in objective.model.named_parameters():
        if name not in ever:
            parameter.requires_grad_(False)


def _reached(objective: Objective, batch: Any, moment: float, *, whole: bool) -> set[str]:
    """The model's parameters that get a gradient; with `whole` also those that take part with a gradient of 0."""
    sums = [module for module in objective.losses.modules() if isinstance(module, LossSum)]
    for each in sums:
        each.whole = whole
    try:
        total = objective(batch, moment)[0]
        if total.requires_grad:
            total.backward()
    finally:
        for each in sums:
            each.whole = True
    found = {name for name, parameter in objective.model.named_parameters() if parameter.grad is not None}
    objective.zero_grad(set_to_none=True)
    return found


def _moments(losses: Sequence[LossSpec]) -> set[float]:
    """Shares of training such that a loss that ever has a weight has one at some of them: schedules are monotonic."""
    ends = {loss.weight.until for loss in losses if isinstance(loss.weight, WeightSchedule)}
    return {0.0} | {end for end in ends if end < 1.0} | {1.0 - 2.0**-20}

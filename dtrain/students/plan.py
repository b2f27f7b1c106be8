"""Which students train side by side, in which way, and in which order: a pure function of recipe, data and machine.

students ── what can be trained together? ──▶ sets ── cut so that every rank has work ──▶ groups, longest first
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dtrain.data import tokenizer_name
from dtrain.errors import counted
from dtrain.losses import find_loss
from dtrain.recipe.phases import CORPUS
from dtrain.recipe.schema import Placement
from dtrain.recipe.training import LossSpec, Student
from dtrain.runfolder import fingerprint

Way = Literal["all ranks", "peers", "fused", "streams", "beside", "alone"]
MOST_FUSED = 16  # members of a group; with more the GPU is full, and more of them run out of memory together
MOST_STREAMS = 4
MOST_BESIDE = 16
MOST: dict[Way, int] = {"fused": MOST_FUSED, "streams": MOST_STREAMS, "beside": MOST_BESIDE}
WORDS = {
    "all ranks": "by all ranks",
    "peers": "learning from each other",
    "fused": "as one stacked model",
    "streams": "on CUDA streams side by side",
    "beside": "side by side, with one pass of their teacher for all",
    "alone": "alone",
}


@dataclass(frozen=True)
class TrainingGroup:
    """Students that one rank trains at the same time (`all ranks`: one student that all train).

    Attributes:
        why: the reason why they are not fused; empty where they are.
        cost: an estimate, of which only ratios matter.
    """

    students: tuple[Student, ...]
    way: Way
    why: str
    cost: float

    @property
    def names(self) -> list[str]:
        return [student.name for student in self.students]


@dataclass(frozen=True)
class Machine:
    """The ranks and devices that the plan is for."""

    ranks: int
    device: str  # cpu | cuda
    precision: Callable[[Student], str]  # gives the precision that a student will train in


def plan_groups(
    students: Sequence[Student],
    placement: Placement,
    machine: Machine,
    *,
    recipe: Sequence[Student],
    task: Callable[[Student], str],
    order: Callable[[Student], int],
    cost: Callable[[Student], float],
) -> list[TrainingGroup]:
    """Every student in exactly one group; groups that all ranks train first, then longest first.

    Args:
        students: those to be trained now.
        recipe: all students of the recipe. A student that could be stacked with another of these trains as a stack,
            even alone where the others are done, failed or elsewhere: so the kernels, and with them the last bits of
            its weights, do not depend on which others are left.
        task: gives the value of `data.task` for a student.
        order: gives the seed of a student's order of rows.
        cost: gives the estimated cost of a student.

    Returns:
        The same list on every rank.
    """
    everyone = sum(map(cost, students)) or 1.0
    ways = {student.name: _way(student, placement, machine, task(student)) for student in recipe}
    structures = Counter(_structure(s, order(s)) for s in recipe if ways[s.name][0] == "fused")
    sets: dict[tuple[Way, str, str], list[Student]] = {}
    for student in students:
        way, why = ways[student.name]
        if way == "fused" and structures[_structure(student, order(student))] == 1:
            way, why = "alone", "no other student can be stacked with it"
        key = {"fused": _structure, "streams": _rows, "beside": _teachers_and_rows}.get(way, lambda s, _: s.name)(
            student, order(student)
        )
        if way == "peers":
            key = str(student.peers)
        sets.setdefault((way, why, key), []).append(student)
    groups = []
    for (way, why, _), members in sets.items():
        if way in MOST:
            most = MOST[way]
            share = math.ceil(machine.ranks * sum(map(cost, members)) / everyone - 1e-9)
            pieces = min(len(members), max(share, math.ceil(len(members) / most)))
        else:
            pieces = 1
        members = sorted(members, key=lambda student: (-cost(student), student.name)) if way != "peers" else members
        for piece in _cut(members, pieces):
            single = len(piece) == 1 and way in ("streams", "beside")
            groups.append(TrainingGroup(tuple(piece), "alone" if single else way, why, sum(map(cost, piece))))
    return sorted(groups, key=lambda group: (group.way != "all ranks", -group.cost, group.names))


def describe(groups: Sequence[TrainingGroup], ranks: int) -> list[str]:
    """The plan in words: who trains where, with whom, and why not stacked."""
    count = sum(len(group.students) for group in groups)
    sizes = f"{counted(count, 'student')} in {counted(len(groups), 'group')} on {counted(ranks, 'rank')}"
    lines = [f"plan: {sizes}{', longest first' if len(groups) > 1 else ''}"]
    load = [0.0] * ranks
    whole = sum(group.cost for group in groups) or 1.0
    for number, group in enumerate(groups):
        rank = load.index(min(load))
        where = "all ranks" if group.way == "all ranks" else f"rank {rank}"
        if group.way != "all ranks":
            load[rank] += group.cost
        why = f" (not stacked: {group.why})" if group.why else ""
        share = f"{100 * group.cost / whole:.0f} % of the work"
        lines.append(f"  {number + 1}. {where}: {', '.join(group.names)}: {WORDS[group.way]}{why}, {share}")
    if ranks > 1:
        lines.append("  (a rank that is free takes the next group, so the ranks may differ)")
    return lines


def why_not_stacked(student: Student, precision: str, task: str) -> str:
    """The reason why a student has no stacked form; empty where it has one."""
    if task == "tagging" or not student.model.stacked:
        return f"{student.model.type} has no stacked form"
    if student.optimizer.type == "lamb":
        return "lamb has no stacked form"
    if student.adversarial is not None:
        return f"{student.adversarial.type} takes a pass of its own"
    if precision == "fp16":
        return "fp16 has a loss scale of its own"
    if any(find_loss(loss.type).stateful for loss in student.losses or []):
        return "its losses have weights of their own"
    if not any(_always_sees_classifier(loss) for loss in student.losses or [LossSpec(type="cross_entropy")]):
        # Optimizers leave a parameter without a gradient as it is; in a stack its gradient is zero, and it decays.
        return "its losses leave the classifier out at times"
    return ""


def _always_sees_classifier(loss: LossSpec) -> bool:
    weight = loss.weight if isinstance(loss.weight, float | int) else min(loss.weight.start, loss.weight.end)
    return weight > 0 and "logits" in find_loss(loss.type).needs


def _way(student: Student, placement: Placement, machine: Machine, task: str) -> tuple[Way, str]:
    if student.parallel == "data":
        return "all ranks", "parallel: data"
    if student.tasks is not None:
        return "alone", "a student of several tasks has batches of its own"
    if student.peers is not None:
        return "peers", "peers see each other's answers in each step"
    if student.noisy is not None:
        return "alone", "a noisy student has rows of its own"
    if _asks_a_teacher(student):
        return "beside", f"{', '.join(student.asks.online)} answers beside it"
    if student.phases is not None:
        return "alone", "each of its phases has an optimizer of its own"
    if placement.fuse == "never":
        return "alone", "placement.fuse is never"
    if placement.fuse == "auto" and machine.device == "cpu":
        return "alone", "it is no faster on a CPU"
    why = why_not_stacked(student, machine.precision(student), task)
    if not why:
        return "fused", ""
    return ("streams" if machine.device == "cuda" else "alone"), why


def _asks_a_teacher(student: Student) -> bool:
    """Whether a teacher runs beside it on rows of its task, in at least one phase."""
    return any(training.asks.online and training.rows != [CORPUS] for training in student.trainings)


def _rows(student: Student, order: int) -> str:
    """What decides which rows a step reads."""
    rule = (student.batch_size, student.batch_tokens, student.accumulation)
    named = (tokenizer_name(student), student.task, student.rows, rule, order)
    if student.reads is None:
        return fingerprint(*named)
    # Where rows have several sides, losses and teachers decide from which rows something can be learnt.
    return fingerprint(*named, student.teachers, [loss.model_dump(mode="json") for loss in student.losses or []])


def _teachers_and_rows(student: Student, order: int) -> str:
    """What decides which teachers run beside a student, and on which rows, in each phase."""
    asked = [
        [_rows(training, order + number), sorted(training.asks.online)]
        for number, training in enumerate(student.trainings)
    ]
    return fingerprint(student.phases is not None, asked)


def _structure(student: Student, order: int) -> str:
    """What members of a stack must have in common; everything else may differ."""
    shape = student.model.model_dump(mode="json", exclude={"dropout"})
    return fingerprint(_rows(student, order), shape, student.optimizer.type, student.precision)


def _cut(members: list[Student], pieces: int) -> list[list[Student]]:
    """Cut `members` into consecutive parts of nearly equal length."""
    ends = [round(len(members) * piece / pieces) for piece in range(pieces + 1)]
    return [members[start:end] for start, end in zip(ends, ends[1:], strict=False)]

"""A student of several tasks: how its tasks are mixed, and what has to hold of it. Of each task it is a student of one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from dtrain.errors import suggest
from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.losses import LossSpec, choose_teachers
from dtrain.recipe.values import Closed

if TYPE_CHECKING:
    from dtrain.recipe.data import Data
    from dtrain.recipe.training import Student

MEAN = "mean"  # the metric of a student of several tasks
# Keys of a student that is for one task, and of one that is for several.
OF_ONE = ("task", "noisy", "peers", "phases")
OF_SEVERAL = ("mixing", "metrics", "baseline")


class Temperature(Closed):
    """Tasks by the T-th root of their numbers of batches: 1 is proportional, the larger the more equal (BAM: 4/3)."""

    temperature: Annotated[float, Field(ge=1.0, allow_inf_nan=False)]  # T


Mixing = Annotated[
    Annotated[Literal["proportional", "equal"], Tag("word")] | Annotated[Temperature, Tag("Temperature")],
    Discriminator(lambda value: "Temperature" if isinstance(value, dict | Temperature) else "word"),
]
Terms = Annotated[list[LossSpec], Field(min_length=1)]
TermsByTask = Annotated[
    Annotated[Terms, Tag("Terms")] | Annotated[dict[str, Terms], Tag("by task")],
    Discriminator(lambda value: "by task" if isinstance(value, dict) else "Terms"),
]


def exponent_of(mixing: Literal["proportional", "equal"] | Temperature | None) -> float:
    """Of a task's number of batches in its share; see `dtrain.data.mixing`."""
    if isinstance(mixing, Temperature):
        return 1.0 / mixing.temperature
    return 0.0 if mixing == "equal" else 1.0


def check_keys(student: Student, tasks: list[str], report: Reporter) -> None:
    """Report keys that are not for a student of one task, or not for one of several, and tasks that are not there."""
    if student.tasks is None:
        for key in OF_SEVERAL:
            if getattr(student, key):
                report(key, "is for a student of several tasks; name them in its `tasks`")
        if isinstance(student.losses, dict):
            report("losses", "by task is for a student of several tasks; name them in its `tasks`, or give a list")
        return
    for key in OF_ONE:
        if getattr(student, key) is not None:
            report(key, "is not for a student of several tasks")
    if len(tasks) < 2:
        report("tasks", "are those of a recipe with several `tasks`; leave them out where there is one")
        return
    for number, task in enumerate(student.tasks):
        if task not in tasks:
            report(f"tasks.{number}", f"no task {task!r}{suggest(task, tasks)} (allowed: {', '.join(tasks)})")
        elif task in student.tasks[:number]:
            report(f"tasks.{number}", f"{task!r} is named twice")
        elif "." in task:
            report(f"tasks.{number}", f"{task!r}: a task that a head is called by must have no dot in its name")
    if not student.model.several:
        encoder = student.model.transformer is student.model
        hint = f"; write {{type: multi_task, encoder: {{type: {student.model.type}, ...}}}}" if encoder else ""
        report("model.type", f"{student.model.type!r} has a head for one task (allowed: multi_task){hint}")
    if student.metric not in (None, MEAN):
        report("metric", f"{student.metric!r} is of one task (allowed: mean; `metrics` says which of each enters it)")
    if student.optimizer.type == "lamb":
        report(
            "optimizer.type",
            "'lamb' scales every step of a parameter to the size of its weights, that of a head that a batch does not "
            "touch, too (allowed: adamw, sgd)",
        )
    _check_by_task(student, report)


def _check_by_task(student: Student, report: Reporter) -> None:
    """Report mappings by task that name others than the student's."""
    own = student.tasks or []
    allowed = f"(allowed: {', '.join(own)})"
    if isinstance(student.losses, list):
        report("losses", f"must be by task: a mapping from a task to a list {allowed}")
    given = {"losses": student.losses, "metrics": student.metrics, "baseline": student.baseline}
    for key, mapping in given.items():
        for task in mapping if isinstance(mapping, dict) else ():
            if task not in own:
                report((key, task), f"is no task of this student{suggest(task, own)} {allowed}")
    missing = [task for task in own if student.baseline and task not in student.baseline]
    if missing:
        report("baseline", f"must have a score for each task, found none for {', '.join(missing)}")
    for task, metric in student.metrics.items():
        if metric == "loss" and student.baseline:
            report(("metrics", task), "'loss' is no score that could be relative to a baseline")


def check_alike(student: Student, sections: list[Data], report: Reporter) -> None:
    """Report tasks whose texts the student's one tokenizer would have to read in two ways."""
    first, *others = sections
    for section in others:
        if section.normalize != first.normalize:
            report(
                "tasks",
                f"{section.key}.normalize differs from {first.key}.normalize, and one encoder reads the texts of both; "
                "write the same there",
            )


def resolve_tasks(student: Student, contexts: dict[str, Context], report: Reporter) -> dict[str, Student]:
    """Fill in and check a student of several tasks, as a student of each.

    Args:
        contexts: of its tasks, by name, in its order.

    Returns:
        By task, the student of that task alone that stands for it.
    """
    teachers = [name for context in contexts.values() for name in context.widths]
    others = next(iter(contexts.values())).elsewhere
    elsewhere = {name: task for name, task in others.items() if name not in teachers}
    student.teachers = choose_teachers(student.teachers, teachers, report, elsewhere)
    losses: dict[str, list[LossSpec]] = student.losses if isinstance(student.losses, dict) else {}
    parts: dict[str, Student] = {}
    everyone = {name: teacher for context in contexts.values() for name, teacher in context.teachers.items()}
    for task, context in contexts.items():
        rows = (
            None if student.rows is None else [part for part in student.rows if part != "transfer" or context.transfer]
        )
        if rows == []:
            report("rows", f"'transfer' needs {context.key}.transfer or {context.key}.augment")
            continue
        values: dict[str, Any] = {
            **{key: None for key in ("tasks", "mixing")},
            **{key: {} for key in ("metrics", "baseline")},
            "task": task,
            "teachers": [name for name in student.teachers if name in context.widths],
            "rows": rows,
            "losses": losses.get(task),
            "metric": student.metrics.get(task),
        }
        parts[task] = student.model_copy(update=values)
        # It may begin with the weights of a teacher of any of its tasks.
        parts[task].resolve(replace(context, teachers=everyone), report.of_task(task))
    if student.rows is not None and "transfer" in student.rows and not any(c.transfer for c in contexts.values()):
        report("rows", "'transfer' needs a task with rows without labels (its `transfer` or `augment`)")
    if parts:
        first = next(iter(parts.values()))
        student.seed, student.batch_size, student.metric = first.seed, first.batch_size, MEAN
        student.mixing = student.mixing or "proportional"
        student.losses = {task: part.losses for task, part in parts.items()}  # type: ignore[assignment]
        student.metrics = {task: str(part.metric) for task, part in parts.items()}
    return parts

"""A student of several tasks: how they are mixed, and checks. In each task, a student of one task stands for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from dtrain.errors import suggest
from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.losses import LossSpec, choose_teachers, matching
from dtrain.recipe.values import Closed, Positive

if TYPE_CHECKING:
    from dtrain.recipe.data import Data
    from dtrain.recipe.phases import StudentPhase
    from dtrain.recipe.training import Student

MEAN = "mean"  # the metric of a student of several tasks
# Keys that only a student of one task may have, and keys that only a student of several tasks may have.
OF_ONE = ("task", "noisy", "peers")
OF_SEVERAL = ("mixing", "metrics", "baseline")
# Names of the attributes of torch's modules (one of them is DeepSpeed's), which no head can have. They are listed here
# because recipes are read without torch.
_WORDS = """
T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches
eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
set_submodule share_memory smart_apply state_dict to to_empty train training type update values xpu zero_grad
"""
TAKEN = frozenset(_WORDS.split())


class Temperature(Closed):
    """Mix tasks by the T-th root of their numbers of batches: 1 is proportional, a larger T more equal (BAM: 4/3)."""

    temperature: Annotated[float, Field(ge=1.0, allow_inf_nan=False)]  # the T of the T-th root


Mixing = Annotated[
    Annotated[Literal["proportional", "equal"], Tag("word")] | Annotated[Temperature, Tag("Temperature")],
    Discriminator(lambda value: "Temperature" if isinstance(value, dict | Temperature) else "word"),
]
Baseline = Annotated[
    Annotated[Positive, Tag("float")]
    | Annotated[str, Tag("str")]
    | Annotated[Annotated[list[str], Field(min_length=1)], Tag("list")],
    Discriminator(lambda value: type(value).__name__ if isinstance(value, str | list) else "float"),
]
Terms = Annotated[list[LossSpec], Field(min_length=1)]
TermsByTask = Annotated[
    Annotated[Terms, Tag("Terms")] | Annotated[dict[str, Terms], Tag("by task")],
    Discriminator(lambda value: "by task" if isinstance(value, dict) else "Terms"),
]
if TYPE_CHECKING:  # those of one task: most of the package sees no others
    TermsOf = list[LossSpec]
else:
    TermsOf = TermsByTask


def exponent_of(mixing: Literal["proportional", "equal"] | Temperature | None) -> float:
    """The exponent of a task's number of batches, to which its share is proportional; see `dtrain.data.mixing`."""
    if isinstance(mixing, Temperature):
        return 1.0 / mixing.temperature
    return 0.0 if mixing == "equal" else 1.0


def check_keys(student: Student, tasks: list[str], report: Reporter) -> None:
    """Report keys that do not fit a student of one task, or one of several, and tasks that the recipe does not have."""
    if student.tasks is None:
        for key in OF_SEVERAL:
            if getattr(student, key):
                report(key, "is for a student of several tasks; name them in its `tasks`")
        if isinstance(student.losses, dict):
            report("losses", "by task is for a student of several tasks; name them in its `tasks`, or give a list")
        for number, phase in enumerate(student.phases or []):
            of_phase = report.at("phases", number, told=phase.name)
            if phase.tasks:
                of_phase("tasks", "is for a phase of a student of several tasks; name those in the student's `tasks`")
            if isinstance(phase.losses, dict):
                of_phase("losses", "by task is for a phase of a student of several tasks; give a list")
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
        elif task in TAKEN:
            report(f"tasks.{number}", f"{task!r}: a head cannot be called so by torch; give the task another name")
    if len(student.tasks) == 1:
        only = student.tasks[0]
        report("tasks", f"names one task: write `task: {only}`, and a model of one task in place of multi_task")
    if not student.model.several:
        encoder = student.model.transformer is student.model
        hint = f"; write {{type: multi_task, encoder: {{type: {student.model.type}, ...}}}}" if encoder else ""
        report("model.type", f"{student.model.type!r} has a head for one task (allowed: multi_task){hint}")
    _check_training(student, report)
    _check_by_task(student, report)
    _check_terms(student.losses, student.tasks, "this student", report)
    _check_phases(student, report)


def _check_training(section: Student | StudentPhase, report: Reporter, *, tasks: int = 2) -> None:
    """Report a metric and an optimizer that are for one task; `tasks`: how many the student, or its phase, has."""
    if section.metric not in (None, MEAN):
        report("metric", f"{section.metric!r} is of one task (allowed: mean; `metrics` says which of each enters it)")
    if section.optimizer is not None and section.optimizer.type == "lamb" and tasks > 1:
        report(
            "optimizer.type",
            "'lamb' scales every step of a parameter to the size of its weights, that of a head that a batch does not "
            "touch, too (allowed: adamw, sgd)",
        )


def _check_terms(losses: object, own: list[str], whose: str, report: Reporter) -> None:
    """Report losses that are not given by task, or are for tasks that are not in `own`."""
    allowed = f"(allowed: {', '.join(own)})"
    if isinstance(losses, list):
        report("losses", f"must be by task: a mapping from a task to a list {allowed}")
    for task in losses if isinstance(losses, dict) else ():
        if task not in own:
            report(("losses", task), f"is no task of {whose}{suggest(task, own)} {allowed}")


def _check_phases(student: Student, report: Reporter) -> None:
    """Report phases on tasks that the student does not have, and tasks that no phase trains."""
    own = student.tasks or []
    allowed = f"(allowed: {', '.join(own)})"
    for number, phase in enumerate(student.phases or []):
        of_phase = report.at("phases", number, told=phase.name)
        for place, task in enumerate(phase.tasks or []):
            if task not in own:
                of_phase(f"tasks.{place}", f"{task!r} is no task of this student{suggest(task, own)} {allowed}")
            elif task in (phase.tasks or [])[:place]:
                of_phase(f"tasks.{place}", f"{task!r} is named twice")
        on = phase.tasks or own
        _check_terms(phase.losses, on, "this phase", of_phase)
        _check_training(phase, of_phase, tasks=len(on))
        if "corpus" in (phase.rows or []):
            of_phase("rows", "'corpus' is not for a student of several tasks")
    for number, task in enumerate(own if student.phases else []):
        if all(task not in (phase.tasks or own) for phase in student.phases or []):
            report(f"tasks.{number}", f"no phase is on {task!r}; name it in the `tasks` of one, or leave it out here")


def _check_by_task(student: Student, report: Reporter) -> None:
    """Report values of `metrics` and `baseline` that do not fit the student's tasks."""
    own = student.tasks or []
    allowed = f"(allowed: {', '.join(own)})"
    for key, mapping in (("metrics", student.metrics), ("baseline", student.baseline)):
        for task in mapping:
            if task not in own:
                report((key, task), f"is no task of this student{suggest(task, own)} {allowed}")
    missing = [task for task in own if student.baseline and task not in student.baseline]
    if missing:
        report("baseline", f"must have a score for each task, found none for {', '.join(missing)}")
    for task, metric in student.metrics.items():
        if metric == "loss" and student.baseline:
            report(("metrics", task), "'loss' is no score that could be relative to a baseline")


def check_alike(student: Student, sections: list[Data], report: Reporter) -> None:
    """Report tasks that normalise texts in different ways, since the student reads all of them with one tokenizer."""
    first, *others = sections
    for section in others:
        if section.normalize != first.normalize:
            report(
                "tasks",
                f"{section.key}.normalize differs from {first.key}.normalize, and one encoder reads the texts of both; "
                "write the same there",
            )


def resolve_baseline(student: Student, contexts: dict[str, Context], report: Reporter) -> dict[str, list[str]]:
    """By task, the names of the teachers that `baseline` gives for it, which are filled in; they must be of that task."""
    found: dict[str, list[str]] = {}
    for task, given in student.baseline.items():
        if isinstance(given, float | int):
            continue
        teachers = list(contexts[task].widths)
        chosen: dict[str, None] = {}
        for name in [given] if isinstance(given, str) else given:
            matched = matching(name, teachers, contexts[task])
            chosen |= dict.fromkeys(matched)
            if not matched:
                report(
                    ("baseline", task),
                    f"no teacher of task {task!r} is called {name!r}{suggest(name, teachers)}; a student has no score before "
                    f"the others are trained (allowed: a number, {', '.join(teachers) or 'and no teacher, as it has none'})",
                )
        found[task] = list(chosen)
    for task, names in found.items():
        student.baseline[task] = names[0] if len(names) == 1 else names
    return found


def resolve_tasks(student: Student, contexts: dict[str, Context], report: Reporter) -> dict[str, Student]:
    """Fill in what is left open, and check the student in each of its tasks.

    Args:
        contexts: the contexts of its tasks, by name and in the student's order.

    Returns:
        By task, the student of one task that stands for it, with those of its phases that train the task.
    """
    teachers = [name for context in contexts.values() for name in context.widths]
    student.teachers = choose_teachers(student.teachers, teachers, next(iter(contexts.values())), report)
    parts: dict[str, Student] = {}
    everyone = {name: teacher for context in contexts.values() for name, teacher in context.teachers.items()}
    for task, context in contexts.items():
        phases = {n: phase for n, phase in enumerate(student.phases or []) if task in (phase.tasks or contexts)}
        rows = _rows_of(student, context, report)
        of_phases = {
            n: _rows_of(phase, context, report.at("phases", n, told=phase.name)) for n, phase in phases.items()
        }
        if [] in (rows, *of_phases.values()):
            continue
        values: dict[str, Any] = {
            **{key: None for key in ("tasks", "mixing")},
            **{key: {} for key in ("metrics", "baseline")},
            "task": task,
            "teachers": [name for name in student.teachers if name in context.widths],
            "rows": rows,
            "losses": _terms_of(student, task),
            "metric": student.metrics.get(task),
            "phases": [phase.model_copy(update=_of_task(phase, task, of_phases[n])) for n, phase in phases.items()]
            or None,
        }
        parts[task] = student.model_copy(update=values)
        # It may start from the weights of a teacher of any of its tasks.
        parts[task].resolve(replace(context, teachers=everyone), report.of_task(task, list(phases)))
    sections: list[tuple[Student | StudentPhase, Reporter]] = [(student, report)]
    sections += [(phase, report.at("phases", n, told=phase.name)) for n, phase in enumerate(student.phases or [])]
    for section, of_section in sections:
        on = [contexts[task] for task in section.tasks or contexts]
        if "transfer" in (section.rows or []) and not any(context.transfer for context in on):
            of_section("rows", "'transfer' needs a task with rows without labels (its `transfer` or `augment`)")
    if parts and not report.problems:
        _fill(student, parts)
    return parts


def _rows_of(section: Student | StudentPhase, context: Context, report: Reporter) -> list[Any] | None:
    """The rows of a student or phase that a task has; None if none are given, empty if the task has none of them."""
    if section.rows is None:
        return None
    rows = [part for part in section.rows if part != "transfer" or context.transfer]
    if not rows:
        report("rows", f"'transfer' needs {context.key}.transfer or {context.key}.augment")
    return rows


def _terms_of(section: Student | StudentPhase, task: str) -> list[LossSpec] | None:
    found: list[LossSpec] | None = section.losses.get(task) if isinstance(section.losses, dict) else None
    return found


def _of_task(phase: StudentPhase, task: str, rows: list[Any] | None) -> dict[str, Any]:
    """The values of a phase that differ for the student of one task."""
    return {"tasks": None, "losses": _terms_of(phase, task), "metric": None, "rows": rows}


def _fill(student: Student, parts: dict[str, Student]) -> None:
    """Take over what was filled in for the students that stand for it in its tasks."""
    first = next(iter(parts.values()))
    student.seed, student.metric = first.seed, MEAN
    student.read_with(first.tokenizer)
    student.mixing = student.mixing or "proportional"
    student.metrics = {task: str(part.metric) for task, part in parts.items()}
    if student.phases is None:
        student.batch_size = first.batch_size
        student.losses = {task: part.losses for task, part in parts.items()}  # type: ignore[assignment]
        return
    for phase in student.phases:
        of = {task: own for task, part in parts.items() for own in part.phases or [] if own.name == phase.name}
        rows: Any = phase.rows or student.rows  # each task uses those of them that it has
        phase.fill(next(iter(of.values())))
        phase.tasks = [task for task in phase.tasks or parts if task in of]
        phase.rows, phase.metric = rows, MEAN
        phase.losses = {task: own.losses for task, own in of.items()}  # type: ignore[assignment]
        phase.keep = "last" if any(own.keep == "last" for own in of.values()) else "best"
        if phase.keep == "last":
            phase.patience = None

"""Choosing the model of a recipe that answers, and the task for which it does."""

from __future__ import annotations

import math
from pathlib import Path

from dtrain.data.problems import shown
from dtrain.errors import InputError, suggest
from dtrain.log import warn
from dtrain.metrics.tasks import scores_of
from dtrain.plan import Plan
from dtrain.recipe import Student, Teacher
from dtrain.runfolder import is_done, read_json

CHANGES = "keys that were changed on the command line of `dtrain run` must be changed here, too"


def of_task(plan: Plan, model: str | None, task: str | None) -> Plan:
    """The plan of the task for which the model answers.

    Args:
        plan: the plan of the whole recipe.
        model: the name of the model that was asked for, if any.
        task: the name of the task that was asked for, if any.

    Raises:
        InputError: there is no such task, the model is not for it, or one of several tasks has to be named.
    """
    names = list(plan.recipe.tasks or ())
    allowed = f"(allowed: {', '.join(names)})"
    if task is not None and task not in names:
        raise InputError(
            f"--task: no task {task!r}{suggest(task, names)} {allowed}"
            if names
            else "--task: is for a recipe with `tasks`; its only rows are those of `data`"
        )
    if not plan.recipe.several:
        return plan
    known = {member.name: member for _, member in plan.members()}
    if model is None or model not in known:
        if task is None and model is None:
            raise InputError(f"--task: must say which of the recipe's tasks to answer {allowed}")
        return plan.tasks[task or names[0]]  # `choose` reports an unknown model with all names
    own = plan.recipe.tasks_of(known[model])
    if task is None and len(own) > 1:
        raise InputError(f"--task: must say which of the tasks of {model} to answer (allowed: {', '.join(own)})")
    if task is not None and task not in own:
        raise InputError(f"--task: {model} is not for task {task!r} (allowed: {', '.join(own)})")
    return plan.tasks[task or own[0]]


def choose(name: str | None, plan: Plan) -> tuple[str, str]:
    """Kind ("teachers" or "students") and name of the model that was asked for, or of the best one.

    The best one is the student, or without any trained student the teacher, with the highest validation score.

    Raises:
        InputError: there is no model of this name, or it is not trained; no model is trained at all.
    """
    trained = [
        (kind, member)
        for kind, member in plan.members()
        if is_done(plan.folder.model(kind, member.name), plan.model(kind, member.name))
    ]
    if name is None:
        students = [(kind, member) for kind, member in trained if kind == "students"]
        if not trained:
            raise InputError(
                f"--model: no model of this recipe is trained yet; `dtrain run` trains them, and {CHANGES}"
            )
        lacking = [
            member.name
            for kind, member in plan.members()
            if kind == "students" and (kind, member) not in trained and plan.failure(member.name) is None
        ]
        if lacking and not students:
            warn(f"no student is trained yet for this recipe: a teacher answers; {CHANGES}")
        elif lacking:
            warn(f"not trained for this recipe, and so not asked: {shown(lacking)}; {CHANGES}")
        best = max(students or trained, key=lambda entry: _valid_score(entry, plan))
        return best[0], best[1].name
    for kind, member in plan.members():
        if member.name == name:
            if (kind, member) in trained:
                return kind, name
            place = plan.folder.model(kind, name)
            raise InputError(f"--model: {name}: not trained yet for this recipe ({place}); {CHANGES}")
    names = [member.name for _, member in plan.members()]
    raise InputError(f"--model: no model {name!r}{suggest(name, names)} (allowed: {', '.join(names)})")


def _valid_score(entry: tuple[str, Teacher | Student], plan: Plan) -> float:
    kind, member = entry
    metrics = read_json(plan.folder.model(kind, member.name) / "metrics.json")
    scores = scores_of(metrics, plan.recipe.task)
    if "loss" not in scores:  # the last phase of a student of several tasks was on other tasks
        return -math.inf
    return float(-scores["loss"] if member.metric == "loss" else scores[str(member.metric)])


def trained_tagger(plan: Plan, name: str) -> tuple[str, Path]:
    """Kind ("teachers" or "students") and folder of a tagger of the recipe, for any of its tasks.

    Raises:
        InputError: the tagger is not trained.
    """
    whole = plan.whole
    kind = next(kind for kind, member in whole.members() if member.name == name)
    place = whole.folder.model(kind, name)
    if not is_done(place, whole.model(kind, name)):
        raise InputError(f"annotated_by: {name} is not trained yet for this recipe; run `dtrain run` first")
    return kind, place

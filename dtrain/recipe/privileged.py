"""Annotations beside the text, which only a teacher may read, and checks of such a teacher and of its students."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dtrain.errors import suggest
from dtrain.recipe.values import Closed, Size

if TYPE_CHECKING:
    from dtrain.recipe.context import Context, Reporter
    from dtrain.recipe.training import Teacher, TrainSpec


class PrivilegedSpec(Closed):
    """Annotations that a teacher reads beside the text: a vector for each, beside the vector of each character."""

    size: Size = 32  # width of the vector of an annotation


def check_privileged(member: TrainSpec, context: Context, report: Reporter, *, student: bool) -> None:
    """Report a model that reads annotations, but is a student or has none; and a `classifier` that does not fit."""
    if student:
        _check_classifier(member, context, report)
    elif member.model.classifier_of is not None:
        report("model.classifier", "is for students: teachers are trained one after another, in no order of their own")
    if not member.model.reads_privileged:
        return
    if student:
        report("model.privileged", "is for teachers: a student reads the text alone, as it will when it is used")
    elif not context.privileged:
        report("model.privileged", f"needs annotations: name their column in {context.key}.columns.privileged")


def check_annotator(teacher: Teacher, taggers: Mapping[str, TrainSpec], report: Reporter) -> None:
    """Report why the entities of `annotated_by` cannot stand in for a teacher's annotations.

    Args:
        taggers: the recipe's taggers by name, teachers and students.
    """
    name = teacher.annotated_by
    if name is None:
        return
    allowed = [other for other, member in taggers.items() if not member.model.reads_privileged]
    if not teacher.model.reads_privileged:
        report("annotated_by", "is for a teacher that reads annotations (model.privileged)")
    elif name not in taggers:
        known = ", ".join(allowed) or "there is none; add one that learns the annotations, with its own of `tasks`"
        report("annotated_by", f"no tagger of the recipe is called {name!r}{suggest(name, allowed)} (allowed: {known})")
    elif name not in allowed:
        report("annotated_by", f"{name} reads annotations itself (allowed: {', '.join(allowed) or 'none'})")


def _check_classifier(student: TrainSpec, context: Context, report: Reporter) -> None:
    """Report, as far as the recipe tells, why a student cannot start from a teacher's classifier."""
    model = student.model
    name = model.classifier_of
    if name is None:
        return
    teacher = context.teachers.get(name)
    if teacher is None:
        known = ", ".join(context.teachers) or "none are defined"
        report("model.classifier", f"no teacher {name!r}{suggest(name, list(context.teachers))} (allowed: {known})")
        return
    if teacher.given:  # only its folder says what model it is
        return
    if teacher.model.token_width is None and not teacher.model.transformer:
        report("model.classifier", f"{name} is a {teacher.model.type}, which has no classifier of characters")
        return
    for key in ("crf", "constrain"):
        own, theirs = getattr(model, key, None), getattr(teacher.model, key, None)
        if own != theirs:
            report(f"model.{key}", f"must be that of {name}, with whose classifier it begins: {str(theirs).lower()}")
    own_width, width = model.token_width, teacher.model.token_width
    if own_width is not None and width is not None and own_width != width:
        report(
            "model.classifier",
            f"the classifier of {name} reads {width} features of a character, and the student has {own_width} (of a tagger "
            "twice its `lstm`)",
        )

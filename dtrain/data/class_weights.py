"""Whether the rows have the labels that `class_weights` name. Needs no torch: the launching process checks with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dtrain.data.problems import shown
from dtrain.errors import suggest

if TYPE_CHECKING:
    from dtrain.recipe.schema import Recipe


def check_class_weights(recipe: Recipe, labels: Sequence[str]) -> list[str]:
    """A problem, as one line, for each label that is given a weight and is not among `labels`.

    Args:
        recipe: a recipe with one task.
        labels: the labels of the task's rows.
    """
    return [
        f"{key}: no label is called {name!r}{suggest(name, labels, 0.5)} (allowed: {shown(labels)})"
        for key, weights in _given(recipe)
        if isinstance(weights, dict)
        for name in weights
        if name not in labels
    ]


def _given(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for teacher in recipe.teachers:
        yield f"teachers.{teacher.name}.class_weights", teacher.class_weights
    in_recipe = {student.name: student for student in recipe.whole.students}
    for student in recipe.students:
        # With several tasks, this student has the phases of one task only: its keys count among all of its phases.
        names = [phase.name for phase in in_recipe[student.name].phases or []]
        own = [f".phases.{names.index(phase.name)}" for phase in student.phases or []] or [""]
        for within, training in zip(own, student.trainings, strict=True):
            key = f"students.{student.name}{within}"
            of = f"losses.{recipe.task}" if student.is_part else "losses"
            for number, loss in enumerate(training.losses or []):
                yield f"{key}.{of}.{number}.class_weights", loss.parameters().get("class_weights")

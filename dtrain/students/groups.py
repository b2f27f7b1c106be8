"""Groups of students, for jobs that train them apart from each other: an array of a cluster, or several machines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dtrain.errors import InputError
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Student


@dataclass(frozen=True)
class Group:
    """One of `count` groups; `number` counts from 0."""

    number: int
    count: int

    def own(self, recipe: Recipe) -> Recipe:
        """The recipe with this group's students alone: every `count`-th, so that a grid's slow ends are shared out.

        Peers stay together.

        Raises:
            InputError: where a search compares all students, and this is not all of them.
        """
        if self.count == 1:
            return recipe
        if recipe.search is not None:
            raise InputError("--group: the recipe's `search` compares all students; run it without --group")
        units: dict[str, list[Student]] = {}
        for student in recipe.students:
            key = student.name if student.peers is None else f"peers of {student.peers}"
            units.setdefault(key, []).append(student)
        mine = list(units.values())[self.number :: self.count]
        return recipe.model_copy(update={"students": [student for unit in mine for student in unit]})


def parse_group(text: str | None) -> Group | None:
    """`2/4` is the third of four.

    Raises:
        InputError: for anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"--group: {text} (allowed: NUMBER/COUNT, counting from 0, as 0/4 to 3/4)")
    return Group(int(found[1]), int(found[2]))

"""Groups of students, for jobs that train them separately: a job array of a cluster, or several machines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dtrain.errors import InputError
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Student


@dataclass(frozen=True)
class Group:
    """One of `count` groups of students; `number` counts from 0."""

    number: int
    count: int

    def own(self, recipe: Recipe) -> Recipe:
        """The recipe with the students of this group alone: every `count`-th, so that a grid's slow end is spread out.

        Peers stay together.

        Raises:
            InputError: the recipe has a search, which compares all students, and `count` is not 1.
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
    """The group that `text` names as NUMBER/COUNT: `2/4` is the third of four. None for None.

    Raises:
        InputError: `text` is anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"--group: {text} (allowed: NUMBER/COUNT, counting from 0, as 0/4 to 3/4)")
    return Group(int(found[1]), int(found[2]))

"""A recipe's tasks as `prepare` left them: of each its part of the recipe, its rows, and what its kind decides."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.data import PreparedData
from dtrain.data.tokenizers import tokenizer_specs
from dtrain.recipe.data import Data
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Student, Teacher
from dtrain.runfolder import RunFolder
from dtrain.tasks.base import Task
from dtrain.tasks.registry import task_of


@dataclass(frozen=True)
class PreparedTask:
    """One task.

    Attributes:
        recipe: of this task alone.
        folder: the run's, with this task's data.
        kind: what is trained and scored, for this task's labels.
    """

    recipe: Recipe
    folder: RunFolder
    data: PreparedData
    kind: Task

    @property
    def name(self) -> str:
        """Empty where the recipe has one task."""
        return self.recipe.task

    @property
    def section(self) -> Data:
        """Its rows in the recipe."""
        return self.recipe.data


class PreparedTasks(dict[str, PreparedTask]):
    """All tasks of a recipe by name; the only one's name is empty."""

    @classmethod
    def open(cls, recipe: Recipe, folder: RunFolder) -> PreparedTasks:
        """Raises DtrainError where nothing was prepared, and InputError where the rows are too few for the recipe."""
        found = cls()
        for view in recipe.views():
            place = folder.of_task(view.task)
            data = PreparedData.open(place)
            kind = task_of(data)
            kind.settle(view.knowledge)
            for name in tokenizer_specs(view):
                kind.check_vocabulary(name, data.vocabulary(name, written=True))
            found[view.task] = PreparedTask(view, place, data, kind)
        return found

    def all_of(self, member: Teacher | Student) -> dict[str, PreparedTask]:
        """Those that a model is for, by name, in the model's order."""
        any_task = next(iter(self.values()))
        return {name: self[name] for name in any_task.recipe.tasks_of(member)}

    def of(self, member: Teacher | Student) -> PreparedTask:
        """The one that a model of one task is for."""
        (task,) = self.all_of(member).values()
        return task

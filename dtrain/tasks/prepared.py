"""The tasks of a recipe after `prepare`: for each its part of the recipe, its prepared rows and its `Task`."""

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
    """One task of a recipe.

    Attributes:
        recipe: the recipe, restricted to this task.
        folder: the run folder, with the data of this task.
        data: the task's prepared rows.
        kind: how these rows are trained on and scored.
    """

    recipe: Recipe
    folder: RunFolder
    data: PreparedData
    kind: Task

    @property
    def name(self) -> str:
        """The name of the task; empty if it is the only one of the recipe."""
        return self.recipe.task

    @property
    def section(self) -> Data:
        """The section of the recipe that describes its rows."""
        return self.recipe.data


class PreparedTasks(dict[str, PreparedTask]):
    """All tasks of a recipe by name. The name is empty if there is only one."""

    @classmethod
    def open(cls, recipe: Recipe, folder: RunFolder) -> PreparedTasks:
        """Open what `prepare` wrote.

        Raises:
            DtrainError: nothing was prepared.
            InputError: a tokenizer that was learnt from the rows has too few tokens for the recipe.
        """
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
        """The tasks that a model is trained for, by name, in the model's order."""
        any_task = next(iter(self.values()))
        return {name: self[name] for name in any_task.recipe.tasks_of(member)}

    def of(self, member: Teacher | Student) -> PreparedTask:
        """The task of a model that is trained for one task only."""
        (task,) = self.all_of(member).values()
        return task

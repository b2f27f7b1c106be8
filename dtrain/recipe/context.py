"""What a recipe's sections need to check themselves: where to report a problem, and what the other sections say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dtrain.tasks.rules import TaskRules

if TYPE_CHECKING:
    from dtrain.recipe.training import TrainSpec

Key = tuple[str | int, ...]
Place = Callable[[Key], str]  # file and line of a key, or the override that gives it


class Reporter:
    """Collects problems as `file:line: key: text`. The reporters of sections (`at`) share one list."""

    def __init__(self, place: Place) -> None:
        self.problems: list[str] = []
        self._place = place
        self._key: Key = ()
        self._shown = ""
        self._by_task: dict[str | int, Key] = {}
        self._phases: list[int] = []

    def at(self, *key: str | int, told: str = "") -> Reporter:
        """The reporter of a section below this one; `told` is shown in parentheses after its key, for example a name."""
        section = Reporter(self._place)
        section.problems = self.problems
        if len(key) == 2 and key[0] == "phases" and self._phases:
            key = ("phases", self._phases[int(key[1])])
            section._by_task = self._by_task
        elif key:
            key = (*self._by_task.get(key[0], key[:1]), *key[1:])
        else:
            section._by_task, section._phases = self._by_task, self._phases
        section._key = (*self._key, *key)
        section._shown = ".".join(filter(None, (self._shown, *map(str, key)))) + (f" ({told})" if told else "")
        return section

    def of_task(self, task: str, phases: list[int]) -> Reporter:
        """The reporter for one of several tasks of a section: it reports `losses` as `losses.TASK`, and so on.

        Args:
            phases: the numbers, in the section, of the phases that train the task; this reporter numbers them from 0.
        """
        section = self.at()
        section._shown = self._shown
        section._by_task, section._phases = {"losses": ("losses", task), "metric": ("metrics", task)}, phases
        return section

    def __call__(self, key: str | Key, text: str) -> None:
        """Report a problem at a key of the section. Dots separate its parts; the empty key is the section itself."""
        if isinstance(key, str):
            key = tuple(int(part) if part.isdigit() else part for part in key.split(".")) if key else ()
        where = self.at(*key)
        self.problems.append(f"{self._place(where._key)}: {where._shown or 'recipe'}: {text}")


@dataclass(frozen=True)
class Context:
    """What a teacher or a student has to know of the other sections of the recipe.

    Attributes:
        task: what the kind of task allows.
        name: the name of the task, if the recipe has several; otherwise "".
        data_task: the value of `data.task`.
        key: the key of the section with the task's rows: `data`, or `tasks.NAME`.
        seed: the seed of the recipe.
        transfer: whether there are rows without labels.
        pretrained: the folder of the model that the recipe itself pre-trains.
        transformers: names of the models that bring a tokenizer, which others may use.
        tokenizers: for each tokenizer that is given by a model or file, the name of the first one that is identical.
        widths: the length of the feature vector of each teacher of the task, None where the recipe does not tell; in recipe
            order.
        elsewhere: names of the teachers of other tasks, each with its task.
        expanded: for each teacher that a grid or a sample stands for, the name that it was expanded from.
        teachers: the sections of the task's teachers, by name.
        sharded: whether teachers that compute outputs are sharded over all ranks.
        two_texts: whether a row is a pair of texts.
        privileged: whether rows have annotations that a teacher may read.
        sides: names of the sides of rows, if rows may have several.
        corpus: whether there is plain text for phases of students.
        separate: whether a token of the plain text attends to the tokens of its own document only.
    """

    task: TaskRules
    data_task: str
    seed: int
    name: str = ""
    key: str = "data"
    transfer: bool = False
    pretrained: str | None = None
    transformers: tuple[str, ...] = ()
    tokenizers: dict[str, str] = field(default_factory=dict)
    widths: dict[str, int | None] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    expanded: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, TrainSpec] = field(default_factory=dict)
    sharded: bool = False
    two_texts: bool = False
    privileged: bool = False
    sides: tuple[str, ...] = ()
    corpus: bool = False
    separate: bool = False

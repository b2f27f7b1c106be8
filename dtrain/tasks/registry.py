"""The kinds of task by their name in `data.task`. No module outside of `dtrain.tasks` compares such a name."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.data import PreparedData
from dtrain.tasks.answers import Answers
from dtrain.tasks.base import Task
from dtrain.tasks.classification.answers import Labels
from dtrain.tasks.classification.preparing import TextPreparing
from dtrain.tasks.classification.task import Classification
from dtrain.tasks.classification.view import VIEW as CLASSIFICATION
from dtrain.tasks.corpus import READINGS
from dtrain.tasks.multi_label.answers import LabelSets
from dtrain.tasks.multi_label.preparing import LabelSetPreparing
from dtrain.tasks.multi_label.task import MultiLabel
from dtrain.tasks.multi_label.view import VIEW as MULTI_LABEL
from dtrain.tasks.preparing import Preparing
from dtrain.tasks.reading import Reading
from dtrain.tasks.regression.answers import Numbers
from dtrain.tasks.regression.preparing import NumberPreparing
from dtrain.tasks.regression.task import Regression
from dtrain.tasks.regression.view import VIEW as REGRESSION
from dtrain.tasks.rules import TaskRules, register_rules
from dtrain.tasks.seq2seq.answers import Targets
from dtrain.tasks.seq2seq.preparing import SidesPreparing
from dtrain.tasks.seq2seq.task import Seq2Seq
from dtrain.tasks.seq2seq.view import VIEW as SEQ2SEQ
from dtrain.tasks.tagging.answers import Spans
from dtrain.tasks.tagging.preparing import DocumentPreparing
from dtrain.tasks.tagging.task import Tagging
from dtrain.tasks.tagging.view import VIEW as TAGGING
from dtrain.tasks.view import View

# How rows are trained on and scored; how they are written and encoded; how models answer; what a report shows.
TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "pairs": Classification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "tagging": Tagging,
    "seq2seq": Seq2Seq,
}
PREPARING: dict[str, Preparing] = {
    "classification": TextPreparing(),
    "pairs": TextPreparing(),
    "regression": NumberPreparing(),
    "multi_label": LabelSetPreparing(),
    "tagging": DocumentPreparing(),
    "seq2seq": SidesPreparing(),
}
ANSWERS: dict[str, Answers] = {
    "classification": Labels(),
    "pairs": Labels(texts=2),
    "regression": Numbers(texts=0),
    "multi_label": LabelSets(texts=0),
    "tagging": Spans(),
    "seq2seq": Targets(),
}
VIEWS: dict[str, View] = {
    "classification": CLASSIFICATION,
    "pairs": CLASSIFICATION,
    "regression": REGRESSION,
    "multi_label": MULTI_LABEL,
    "tagging": TAGGING,
    "seq2seq": SEQ2SEQ,
}


def task_of(data: PreparedData) -> Task:
    """The task of prepared data, with the labels of the data."""
    return TASKS[data.info["task"]].of(data)


@dataclass(frozen=True)
class TaskKind:
    """Everything that one kind of task decides; each field is described by its class."""

    rules: TaskRules
    reading: Reading
    preparing: Preparing
    task: type[Task]
    answers: Answers
    view: View


def register_task(name: str, kind: TaskKind) -> None:
    """Register a further value of `data.task`.

    Losses and kinds of output refer to a task by `kind.rules.name`. A task whose models give the same outputs as
    those of another task, for instance `classification`, uses the losses and kinds of that task by having the same
    name in its rules. A task with a name of its own lists in its rules the needs that it supplies; it can use every
    loss, of other tasks as well, that has no further needs.

    Raises:
        ValueError: the name is taken.
    """
    register_rules(name, kind.rules)
    READINGS[name], PREPARING[name] = kind.reading, kind.preparing
    TASKS[name], ANSWERS[name], VIEWS[name] = kind.task, kind.answers, kind.view

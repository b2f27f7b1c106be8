"""The kinds of task by the name that `data.task` gives them. Nothing outside of this folder compares such a name."""

from __future__ import annotations

from dtrain.data import PreparedData
from dtrain.tasks.answers import Answers
from dtrain.tasks.base import Task
from dtrain.tasks.classification.answers import Labels
from dtrain.tasks.classification.preparing import TextPreparing
from dtrain.tasks.classification.task import Classification
from dtrain.tasks.classification.view import VIEW as CLASSIFICATION
from dtrain.tasks.preparing import Preparing
from dtrain.tasks.tagging.answers import Spans
from dtrain.tasks.tagging.preparing import DocumentPreparing
from dtrain.tasks.tagging.task import Tagging
from dtrain.tasks.tagging.view import VIEW as TAGGING
from dtrain.tasks.view import View

# How rows are trained on and scored; how they are written and encoded; how models answer; what a report shows.
TASKS: dict[str, type[Task]] = {"classification": Classification, "pairs": Classification, "tagging": Tagging}
PREPARING: dict[str, Preparing] = {
    "classification": TextPreparing(),
    "pairs": TextPreparing(pairs=True),
    "tagging": DocumentPreparing(),
}
ANSWERS: dict[str, Answers] = {"classification": Labels(), "pairs": Labels(texts=2), "tagging": Spans()}
VIEWS: dict[str, View] = {"classification": CLASSIFICATION, "pairs": CLASSIFICATION, "tagging": TAGGING}


def task_of(data: PreparedData) -> Task:
    """The task of prepared data, for its labels."""
    return TASKS[data.info["task"]](data.labels, data.info.get("types", []))

"""The kinds of task by the name that `data.task` gives them: how their models answer, and what a report shows."""

from __future__ import annotations

from dtrain.tasks.answers import Answers
from dtrain.tasks.classification.answers import Labels
from dtrain.tasks.classification.view import VIEW as CLASSIFICATION
from dtrain.tasks.tagging.answers import Spans
from dtrain.tasks.tagging.view import VIEW as TAGGING
from dtrain.tasks.view import View

ANSWERS: dict[str, Answers] = {"classification": Labels(), "pairs": Labels(), "tagging": Spans()}
VIEWS: dict[str, View] = {"classification": CLASSIFICATION, "pairs": CLASSIFICATION, "tagging": TAGGING}

"""The task of a recipe's data."""

from __future__ import annotations

from dtrain.data import PreparedData
from dtrain.tasks.base import Task
from dtrain.tasks.classification.task import Classification
from dtrain.tasks.tagging.task import Tagging


def task_of(data: PreparedData) -> Task:
    """How rows of prepared data are trained on and scored."""
    if data.info["task"] == "tagging":
        return Tagging(data.labels, data.types)
    return Classification(data.labels, [])

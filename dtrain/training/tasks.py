"""The task of a recipe's data."""

from __future__ import annotations

from dtrain.data import PreparedData
from dtrain.training.classification import Classification
from dtrain.training.tagging import Tagging
from dtrain.training.task import Task


def task_of(data: PreparedData) -> Task:
    """How rows of prepared data are trained on and scored."""
    if data.info["task"] == "tagging":
        return Tagging(data.labels, data.types)
    return Classification(data.labels, [])

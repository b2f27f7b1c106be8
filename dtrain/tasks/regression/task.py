"""Regression: loss terms, targets and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import EncodedSplit, PreparedData
from dtrain.data.batch import ByName
from dtrain.metrics.regression import number_scores
from dtrain.recipe.training import LossSpec, Teacher
from dtrain.tasks.regression.scale import SCALE, Scale
from dtrain.tasks.texts import TextTask, by_row
from dtrain.training.workers import Workers

PLOTTED = 1000  # rows whose numbers are kept for the scatter plot of the report


class Regression(TextTask):
    """Task `regression`: one number for each row, predicted by the only logit of a model, in the unit of `scale`."""

    name = "regression"
    scale = Scale()

    @classmethod
    def of(cls, data: PreparedData) -> Regression:
        task = cls(data.labels, [])
        if data.info["standardize"]:
            spread = data.info["numbers"]
            task.scale = Scale(spread["mean"], spread["deviation"] or 1.0)  # after a split, all numbers may be equal
        return task

    @property
    def config(self) -> dict[str, Any]:
        scale = {SCALE: self.scale.as_config()} if self.scale != Scale() else {}
        return {"problem_type": "regression", **scale}

    @property
    def answer_in_words(self) -> str:
        if self.scale == Scale():
            return "answer: a number, the model's one logit"
        return f"answer: a number, the model's one logit x {self.scale.deviation:g} + {self.scale.mean:g}"

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        return [LossSpec(type="squared_error")]

    def targets(self, rows: EncodedSplit, index: np.ndarray) -> ByName:
        numbers = np.zeros(len(index))
        values, owner = rows.collate_values(index)
        numbers[owner] = self.scale.inward(values)
        return {"numbers": torch.from_numpy(numbers).float()}

    def scores(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, float]:
        return _scores(*self._predict(model, part, workers))

    def record(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
        gold, predicted = self._predict(model, part, workers)
        shown = np.unique(np.linspace(0, len(gold) - 1, min(PLOTTED, len(gold))).round().astype(int))
        return {"scores": _scores(gold, predicted), "scatter": [gold[shown].tolist(), predicted[shown].tolist()]}

    def headline(self, scores: Mapping[str, float]) -> str:
        return f"pearson {scores['pearson']:.4f}, spearman {scores['spearman']:.4f}"

    def _predict(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> tuple[np.ndarray, np.ndarray]:
        """Gold and predicted numbers of a part's labelled rows in their order, float64, on every rank."""
        found = by_row(model, part, workers, lambda logits, rows: logits)[:, 0].numpy()
        labelled = np.flatnonzero(part.labels >= 0)
        return part.collate_values(labelled)[0], self.scale.outward(found[labelled])


def _scores(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    found = number_scores(gold, predicted)
    return {**found, "loss": found["mse"]}

"""Multi-label classification: loss terms, targets and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data import EncodedSplit, PreparedData
from dtrain.data.batch import ByName
from dtrain.metrics.label_sets import count_labels, label_set_scores, per_label
from dtrain.recipe.training import LossSpec, Teacher
from dtrain.tasks.texts import TextTask, by_row
from dtrain.training.workers import Workers

THRESHOLD = "threshold"  # the name of the entry in config.json


class MultiLabel(TextTask):
    """Task `multi_label`: a row has a label if sigmoid(logit) is above the threshold."""

    name = "multi_label"
    threshold = 0.5

    @classmethod
    def of(cls, data: PreparedData) -> MultiLabel:
        task = cls(data.labels, [])
        task.threshold = data.info["threshold"]
        return task

    @property
    def config(self) -> dict[str, Any]:
        return {"problem_type": "multi_label_classification", THRESHOLD: self.threshold}

    @property
    def answer_in_words(self) -> str:
        return f"{super().answer_in_words}; any number of them a row, of a probability above {self.threshold:g}"

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        return [LossSpec(type="binary_cross_entropy")]

    def targets(self, rows: EncodedSplit, index: np.ndarray) -> ByName:
        return {"label_sets": torch.from_numpy(self._sets(rows, index)).float()}

    def scores(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, float]:
        return self._count(model, part, workers)[1]

    def record(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
        counts, scores = self._count(model, part, workers)
        return {"scores": scores, "per_class": per_label(counts, self.labels)}

    def headline(self, scores: Mapping[str, float]) -> str:
        return f"f1 {scores['f1']:.4f}, macro {scores['f1_macro']:.4f}, exact match {scores['exact_match']:.4f}"

    def _sets(self, rows: EncodedSplit, index: np.ndarray) -> np.ndarray:
        """Whether a row has a label, bool [B, C]; False for rows that are not labelled."""
        sets = np.zeros((len(index), len(self.labels)), dtype=bool)
        values, owner = rows.collate_values(index)
        sets[owner, values] = True
        return sets

    def _count(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> tuple[Tensor, dict[str, float]]:
        """Counts for each label, int64 [C, 3] (see `count_labels`), and the scores, over all ranks."""
        counts = torch.zeros(len(self.labels), 3, dtype=torch.int64)
        # The threshold as a logit: comparing logits avoids a sigmoid that different devices round differently.
        least = math.log(self.threshold / (1 - self.threshold))

        def measure(logits: Tensor, rows: np.ndarray) -> Tensor:
            gold = torch.from_numpy(self._sets(part, rows)).to(logits.device, non_blocking=True)
            predicted = logits.double() > least
            counts.add_(count_labels(gold, predicted))
            losses = functional.binary_cross_entropy_with_logits(logits.double(), gold.double(), reduction="none")
            return torch.stack([losses.mean(1), (gold == predicted).all(1).double()], dim=1)

        by_loss = by_row(model, part, workers, measure, width=2)
        counts = workers.sum(counts)
        rows = int((part.labels >= 0).sum())
        scores = label_set_scores(counts, int(by_loss[:, 1].sum()), rows)
        # fsum rounds once, whatever the order: the mean has the same last digit for any number of ranks.
        return counts, {**scores, "loss": math.fsum(by_loss[:, 0].tolist()) / rows}

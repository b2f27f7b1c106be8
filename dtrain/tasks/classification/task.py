"""Classification: loss terms, targets and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from dtrain.data import EncodedSplit
from dtrain.data.batch import ByName
from dtrain.metrics import per_class, scores
from dtrain.recipe.training import LossSpec, Teacher
from dtrain.tasks.classification.scoring import count_part, evaluate_part
from dtrain.tasks.texts import TextTask
from dtrain.training.workers import Workers


class Classification(TextTask):
    """Tasks `classification` and `pairs`: one label a row."""

    name = "classification"

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        smoothing = {"label_smoothing": spec.label_smoothing, "class_weights": spec.class_weights}
        if spec.model.early_exits:
            terms = [{"type": "exits_cross_entropy", **smoothing}, {"type": "exits_distillation"}]
        else:
            terms = [{"type": "cross_entropy", **smoothing}]
        if spec.tolerance:
            terms.append({"type": "top_gap", "weight": spec.tolerance.weight, "k": spec.tolerance.k})
        return [LossSpec.model_validate(term) for term in terms]

    def targets(self, rows: EncodedSplit, index: np.ndarray) -> ByName:
        return {"labels": rows.collate_labels(index).clamp(min=0)}  # a valid class also where there is no label

    def scores(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, float]:
        return evaluate_part(model, part, workers, len(self.labels))

    def record(self, model: nn.Module, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
        confusion, loss = count_part(model, part, workers, len(self.labels))
        return {
            "scores": {**scores(confusion), "loss": loss},
            "per_class": per_class(confusion, self.labels),
            "confusion": confusion.counts.tolist(),
        }

    def headline(self, scores: Mapping[str, float]) -> str:
        return f"accuracy {scores['accuracy']:.4f}, f1 {scores['f1']:.4f}"

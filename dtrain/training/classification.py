"""Classifying rows: what a classifier's training and scoring do with a batch of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import Part
from dtrain.distributed import World
from dtrain.knowledge import StoreReader
from dtrain.losses import LossSum
from dtrain.metrics import per_class, scores
from dtrain.recipe.schema import LossSpec, Teacher
from dtrain.training.evaluation import count_part, evaluate_part
from dtrain.training.task import LossFunction, Task


class Classification(Task):
    """Tasks `classification` and `pairs`: one label a row."""

    name = "classification"
    card_tag = "text-classification"

    def units(self, part: Part) -> np.ndarray:
        return np.ones(len(part), dtype=np.int64)

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        return [LossSpec.model_validate({"type": "cross_entropy", "label_smoothing": spec.label_smoothing})]

    def loss(
        self, losses: LossSum, rows: Part, stores: Mapping[str, StoreReader], device: torch.device
    ) -> LossFunction:
        def loss(model: nn.Module, index: np.ndarray) -> Any:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in rows.collate(index).items()}
            labels = torch.from_numpy(rows.labels[index]).to(device, non_blocking=True)
            ids = rows.ids[index]
            teachers = {
                name: {"logits": store.logits(ids).to(device, non_blocking=True)} for name, store in stores.items()
            }
            given = {"logits": model(**batch).logits, "labels": labels.clamp(min=0)}
            return losses(given, teachers, labels >= 0)

        return loss

    def scores(self, model: nn.Module, part: Part, world: World, **how: Any) -> dict[str, float]:
        return evaluate_part(model, part, world, classes=len(self.labels), **how)

    def record(self, model: nn.Module, part: Part, world: World, **how: Any) -> dict[str, Any]:
        confusion, loss = count_part(model, part, world, classes=len(self.labels), **how)
        return {
            "scores": {**scores(confusion), "loss": loss},
            "per_class": per_class(confusion, self.labels),
            "confusion": confusion.counts.tolist(),
        }

    def headline(self, scores: Mapping[str, float]) -> str:
        return f"accuracy {scores['accuracy']:.4f}, f1 {scores['f1']:.4f}"

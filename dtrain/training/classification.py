"""Classifying rows: what a classifier's training and scoring do with a batch of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import Part
from dtrain.distributed import World
from dtrain.knowledge.collect import model_options, pick
from dtrain.knowledge.reader import StoreReader
from dtrain.losses import LossSum
from dtrain.metrics import per_class, scores
from dtrain.recipe.training import LossSpec, Teacher
from dtrain.training.evaluation import count_part, evaluate_part
from dtrain.training.task import LossFunction, Task


class Classification(Task):
    """Tasks `classification` and `pairs`: one label a row."""

    name = "classification"
    card_tag = "text-classification"

    def units(self, part: Part) -> np.ndarray:
        return np.ones(len(part), dtype=np.int64)

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        smoothing = {"label_smoothing": spec.label_smoothing}
        if spec.model.type == "multi_exit":
            terms = [{"type": "exits_cross_entropy", **smoothing}, {"type": "exits_distillation"}]
        else:
            terms = [{"type": "cross_entropy", **smoothing}]
        if spec.tolerance:
            terms.append({"type": "top_gap", "weight": spec.tolerance.weight, "k": spec.tolerance.k})
        return [LossSpec.model_validate(term) for term in terms]

    def loss(
        self, losses: LossSum, rows: Part, stores: Mapping[str, StoreReader], device: torch.device
    ) -> LossFunction:
        read = {
            name: [output for output, names in losses.teacher_outputs.items() if names is None or name in names]
            for name in stores
        }
        with_features, with_exits = losses.need("features"), losses.need("exits")

        def loss(model: nn.Module, index: np.ndarray, progress: float) -> Any:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in rows.collate(index).items()}
            labels = rows.collate_labels(index).to(device, non_blocking=True)
            ids = rows.ids[index]
            teachers = {
                name: {output: _stored(stores[name], output, ids).to(device, non_blocking=True) for output in outputs}
                for name, outputs in read.items()
            }
            bare = getattr(model, "module", model)  # DDP's
            output = model(**batch, **(model_options(bare, ["features"]) if with_features else {}))
            given = {"logits": output.logits, "labels": labels.clamp(min=0)}
            if with_features:
                given["features"] = pick("features", output)
            if with_exits:
                given["exits"] = output.exits
            return losses(given, teachers, labels >= 0, progress=progress)

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


def _stored(store: StoreReader, output: str, ids: np.ndarray) -> torch.Tensor:
    return store.features(ids) if output == "features" else store.logits(ids)

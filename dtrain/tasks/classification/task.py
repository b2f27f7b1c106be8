"""Classifying rows: what a classifier's training and scoring do with a batch of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import EncodedSplit
from dtrain.data.batch import Batch
from dtrain.knowledge.collect import model_options, pick
from dtrain.knowledge.kinds import kind_names
from dtrain.metrics import per_class, scores
from dtrain.recipe.training import LossSpec, Teacher
from dtrain.tasks.base import Task
from dtrain.tasks.classification.scoring import count_part, evaluate_part
from dtrain.training.workers import Workers


class Classification(Task):
    """Tasks `classification` and `pairs`: one label a row."""

    name = "classification"
    card_tag = "text-classification"

    def units(self, part: EncodedSplit) -> np.ndarray:
        return np.ones(len(part), dtype=np.int64)

    def teacher_losses(self, spec: Teacher) -> list[LossSpec]:
        smoothing = {"label_smoothing": spec.label_smoothing}
        if spec.model.early_exits:
            terms = [{"type": "exits_cross_entropy", **smoothing}, {"type": "exits_distillation"}]
        else:
            terms = [{"type": "cross_entropy", **smoothing}]
        if spec.tolerance:
            terms.append({"type": "top_gap", "weight": spec.tolerance.weight, "k": spec.tolerance.k})
        return [LossSpec.model_validate(term) for term in terms]

    def collate(self, rows: EncodedSplit, index: np.ndarray, needs: set[str]) -> Batch:
        labels = rows.collate_labels(index)
        return Batch(
            rows=index,
            ids=rows.ids[index],
            inputs=rows.collate(index),
            targets={"labels": labels.clamp(min=0)},  # a class that exists also where there is no label
            labelled=labels >= 0,
            units=torch.ones_like(labels),
        )

    def outputs(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]:
        asked = [name for name in kind_names() if name in needs and name != "logits"]
        output = model(**batch.inputs, **model_options(model, asked))
        found = {"logits": output.logits} | {name: pick(name, output) for name in asked}
        if "exits" in needs:
            found["exits"] = output.exits
        return found

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

"""Answers that are sets of labels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dtrain.models.folder import described
from dtrain.tasks.answers import model_labels
from dtrain.tasks.classification.answers import TextAnswers
from dtrain.tasks.multi_label.task import THRESHOLD


class LabelSets(TextAnswers):
    """Answers of task `multi_label`: the `labels` with a probability above the threshold, and all `scores`."""

    columns = ("labels",)

    def answers(self, logits: torch.Tensor, model: nn.Module) -> Iterator[dict[str, Any]]:
        labels, threshold = model_labels(model), float(described(model, THRESHOLD, 0.5))
        least = math.log(threshold / (1 - threshold))
        values = logits.double()
        for row, shares in zip((values > least).tolist(), torch.sigmoid(values).tolist(), strict=True):
            yield {
                "labels": [label for label, found in zip(labels, row, strict=True) if found],
                "scores": {label: round(share, 6) for label, share in zip(labels, shares, strict=True)},
            }

    def cells(self, answer: dict[str, Any]) -> list[str]:
        return [json.dumps(answer["labels"], ensure_ascii=False)]

    def meaning(self, model: nn.Module) -> dict[str, Any]:
        return {"answer": "labels", "threshold": float(described(model, THRESHOLD, 0.5))}

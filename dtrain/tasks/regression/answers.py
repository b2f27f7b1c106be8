"""Answers that are numbers, in the unit of the user's files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dtrain.models.folder import described
from dtrain.tasks.classification.answers import TextAnswers
from dtrain.tasks.regression.scale import SCALE, Scale


class Numbers(TextAnswers):
    """Answers of task `regression`: a `number`."""

    columns = ("number",)

    def answers(self, logits: torch.Tensor, model: nn.Module) -> Iterator[dict[str, Any]]:
        scale = Scale.from_config(described(model, SCALE, None))
        for number in scale.outward(logits[:, 0].double().numpy()).tolist():
            yield {"number": float(f"{number:.7g}")}  # float32 has about 7 significant digits

    def cells(self, answer: dict[str, Any]) -> list[str]:
        return [f"{answer['number']:.7g}"]

    def meaning(self, model: nn.Module) -> dict[str, Any]:
        scale = Scale.from_config(described(model, SCALE, None))
        return {"answer": "number", "scale": scale.deviation, "shift": scale.mean}

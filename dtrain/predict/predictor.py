"""A model folder that answers from text, wherever it was copied to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dtrain.errors import InputError
from dtrain.models import load
from dtrain.recipe.data import Normalization
from dtrain.runfolder import read_json
from dtrain.tasks.answers import Texts
from dtrain.tasks.registry import ANSWERS
from dtrain.training.workers import Workers


class Predictor:
    """Calls as `predictor(texts)`, for pairs `predictor(texts, texts_b)`.

    Args:
        folder: of a model that dtrain wrote; it says how texts are prepared.
        device: where the model computes.

    Raises:
        InputError: the folder is no model folder, or does not say how its texts were prepared.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder)
        self.device = torch.device(device)
        self.model = load(self.folder, self.device)
        path = self.folder / "preprocessing.json"
        try:
            prepared = read_json(path)
        except OSError:
            raise InputError(f"{path}: is missing; how the texts were prepared is not known") from None
        self.task: str = prepared.get("task", "classification")
        self.texts: int = ANSWERS[self.task].texts or prepared.get("texts", 1)
        self.normalize = Normalization.model_validate(prepared["normalize"])
        self.max_length: int = prepared["max_length"]

    def __call__(self, texts: list[str], texts_b: list[str] | None = None) -> list[Any]:
        """The answer to each text.

        Returns:
            Of a classifier its `label`, the label's probability `score`, and all probabilities `scores` by label. Of a
            tagger a list of entities: `text`, `type`, `start`, `end` (exclusive) and `score`, the least probability of a
            character's tag in it.

        Raises:
            InputError: one text a row for a model of pairs, or two for another.
        """
        answers, places = ANSWERS[self.task], range(len(texts))
        if (texts_b is None) != (self.texts == 1):
            needed = "one text" if self.texts == 1 else "two texts"
            raise InputError(f"{self.folder}: is a model for task {self.task!r}; give {needed} a row")
        rows = Texts(list(places), texts, texts_b or [], list(places))
        part = answers.encode(self.folder, rows, self.normalize, self.max_length)
        return list(answers.find(self.model, part, rows, Workers(self.device, torch.get_num_threads())))

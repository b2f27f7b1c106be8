"""Answers of a trained model to new text: what each kind of task says of how they are found and written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dtrain.data import EncodedSplit
from dtrain.data.dataset import PreparedData
from dtrain.recipe.data import Data, Normalization
from dtrain.training.workers import Workers


@dataclass(frozen=True)
class Texts:
    """What is to be labelled, a list a column."""

    ids: list[str | int]
    text: list[str]
    text_b: list[str]  # pairs only, else empty
    lines: list[int]  # where each row began in its file, from 1

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: slice) -> Texts:
        """Some of the rows."""
        return Texts(self.ids[rows], self.text[rows], self.text_b[rows], self.lines[rows])


class Answers(ABC):
    """How models of one kind of task answer."""

    forms: tuple[str, ...]  # what `dtrain predict --form` can write
    formats: tuple[str, ...]  # what `dtrain predict --format` can read
    texts: int = 1  # of a row; 0: one or two, as the recipe, and a model's folder, say

    @abstractmethod
    def reader(self, model: Path, normalize: Normalization, max_length: int) -> Callable[[Texts], EncodedSplit]:
        """What makes of texts what the model in this folder reads; several threads may call it at a time."""

    def encode(self, model: Path, texts: Texts, normalize: Normalization, max_length: int) -> EncodedSplit:
        """Texts as the model in this folder reads them."""
        return self.reader(model, normalize, max_length)(texts)

    @abstractmethod
    def find(self, model: nn.Module, part: EncodedSplit, texts: Texts, workers: Workers) -> Iterable[Any]:
        """The model's answer to each text, in their order, on every rank; plain values, as JSON has them."""

    @abstractmethod
    def lines(
        self, texts: Texts, answers: Iterable[Any], form: str, section: Data, data: PreparedData
    ) -> Iterator[str]:
        """The answers as lines of a file, in one of `forms`.

        Args:
            section: the recipe's; data: what was prepared from it. Some forms are those of the user's own files.
        """


def model_labels(model: nn.Module) -> list[str]:
    """Names of a model's outputs, in their order."""
    config: Any = model.config
    names = config["id2label"] if isinstance(config, dict) else config.id2label
    return [names[key] for key in sorted(names, key=int)]

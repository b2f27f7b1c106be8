"""Answers of a trained model to new text: what each kind of task says of how they are found and written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dtrain.data import EncodedSplit
from dtrain.data.dataset import PreparedData
from dtrain.data.schemes import Span
from dtrain.errors import InputError
from dtrain.recipe.data import Data, Normalization
from dtrain.training.workers import Workers


@dataclass(frozen=True)
class Texts:
    """What is to be labelled, a list a column."""

    ids: list[str | int]
    text: list[str]
    text_b: list[str]  # pairs only, else empty
    lines: list[int]  # where each row began in its file, from 1
    # annotations of each text, for a model that reads them; else empty
    privileged: list[list[Span]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: slice) -> Texts:
        """Some of the rows."""
        return Texts(self.ids[rows], self.text[rows], self.text_b[rows], self.lines[rows], self.privileged[rows])


@dataclass(frozen=True)
class Exported:
    """What an exported model of one kind of task needs beside its graphs.

    Attributes:
        script: a module of this package, whose file becomes `predict.py`: no import of this package, 100 lines at most.
        settings: what it has to know, as JSON holds it.
        normalization: what it does to text first, likewise.
        tokenizer: the text of `tokenizer.json`.
        types: whether the graph reads token types.
        more: further files of the folder, as name and text.
    """

    script: str
    settings: dict[str, Any]
    normalization: dict[str, Any]
    tokenizer: str
    types: bool = False
    more: tuple[tuple[str, str], ...] = ()


class Answers(ABC):
    """How models of one kind of task answer."""

    forms: tuple[str, ...]  # what `dtrain predict --form` can write
    formats: tuple[str, ...]  # what `dtrain predict --format` can read
    texts: int = 1  # of a row; 0: one or two, as the recipe, and a model's folder, say

    @abstractmethod
    def reader(self, model: Path, normalize: Normalization, max_length: int) -> Callable[[Texts], EncodedSplit]:
        """What makes of texts what the model in this folder reads; several threads may call it at a time."""

    def searching(self, model: Path, beam: int, length_penalty: float, option: str) -> Answers:
        """These answers, each the best of `beam` hypotheses.

        Args:
            model: the folder of the model that is to answer.
            length_penalty: a hypothesis of n tokens is scored by its log-probability over n to this power.
            option: what asks for it, for messages.

        Raises:
            InputError: such models look for nothing, or this one has fewer tokens than `beam`.
        """
        raise InputError(f"{option}: is for models that write texts (task seq2seq), and {model} writes none")

    def encode(self, model: Path, texts: Texts, normalize: Normalization, max_length: int) -> EncodedSplit:
        """Texts as the model in this folder reads them."""
        return self.reader(model, normalize, max_length)(texts)

    def reads_privileged(self, model: Path) -> list[str]:
        """Types of the annotations that the model in this folder reads beside each text; empty where it reads none."""
        return []

    def types(self, model: nn.Module) -> list[str]:
        """Of a model that finds entities, their types in order; of any other none."""
        return []

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

    def exported(
        self, model: nn.Module, place: Path, normalize: Normalization, max_length: int, texts: int
    ) -> Exported:
        """How a model answers away from this package.

        Args:
            place: the model's folder.
            texts: of a row, 1 or 2.

        Raises:
            InputError: such models cannot be exported.
        """
        raise InputError(f"export: {place}: models for this kind of task cannot be exported")


def model_labels(model: nn.Module) -> list[str]:
    """Names of a model's outputs, in their order."""
    config: Any = model.config
    names = config["id2label"] if isinstance(config, dict) else config.id2label
    return [names[key] for key in sorted(names, key=int)]

"""Answers (predictions) of trained models for new text: how each kind of task computes and writes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Rows of new text that a model is to answer, one sequence for each column: lists, or columns kept in a file."""

    ids: Sequence[str | int]
    text: Sequence[str]
    text_b: Sequence[str]  # pairs only, else empty
    lines: Sequence[int]  # the line of its file on which each row begins, from 1
    # annotations of each text, for a model that reads them; else empty
    privileged: Sequence[list[Span]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: slice) -> Texts:
        """The rows of a slice, in memory."""
        return Texts(self.ids[rows], self.text[rows], self.text_b[rows], self.lines[rows], self.privileged[rows])


@dataclass(frozen=True)
class Exported:
    """What an exported model of one kind of task needs besides its graphs.

    Attributes:
        script: name of the module of this package whose source is copied as `predict.py`. It imports nothing of this
            package and has at most 100 lines.
        settings: the content of `settings.json`, which the script reads.
        normalization: the content of `normalization.json`, by which the script normalises text.
        tokenizer: the content of `tokenizer.json`.
        types: whether the graph takes token types.
        more: further files of the folder, as pairs of a name and the file's content.
    """

    script: str
    settings: dict[str, Any]
    normalization: dict[str, Any]
    tokenizer: str
    types: bool = False
    more: tuple[tuple[str, str], ...] = ()


class Answers(ABC):
    """How models of one kind of task answer new text."""

    forms: tuple[str, ...]  # output formats: the values of `dtrain predict --form`
    formats: tuple[str, ...]  # input formats: the values of `dtrain predict --format`
    texts: int = 1  # texts in a row; 0: one or two, as the recipe and the model's folder say

    @abstractmethod
    def reader(self, model: Path, normalize: Normalization, max_length: int) -> Callable[[Texts], EncodedSplit]:
        """A function that encodes texts as the model in this folder reads them; several threads may call it at once."""

    def searching(self, model: Path, beam: int, length_penalty: float, option: str) -> Answers:
        """The same answers, found by beam search.

        Args:
            model: the folder of the model that is to answer.
            beam: number of hypotheses.
            length_penalty: the score of a hypothesis of n tokens is its log-probability divided by n to this power.
            option: the option or argument that asked for beam search, for error messages.

        Raises:
            InputError: models of this kind of task generate no text; `beam` is not positive, or more than the number of
                tokens that this model can generate; `length_penalty` is not finite.
        """
        raise InputError(f"{option}: is for models that write texts (task seq2seq), and {model} writes none")

    def encode(self, model: Path, texts: Texts, normalize: Normalization, max_length: int) -> EncodedSplit:
        """Encode texts as the model in this folder reads them."""
        return self.reader(model, normalize, max_length)(texts)

    def reads_privileged(self, model: Path) -> list[str]:
        """Types of the annotations that the model in this folder reads with each text; empty if it reads none."""
        return []

    def types(self, model: nn.Module) -> list[str]:
        """The entity types of a tagger, in the order of their numbers; empty for any other model."""
        return []

    @abstractmethod
    def find(self, model: nn.Module, part: EncodedSplit, texts: Texts, workers: Workers) -> Iterable[Any]:
        """The model's answer to each text, in the order of the texts, on every rank: values that JSON can represent."""

    @abstractmethod
    def lines(
        self, texts: Texts, answers: Iterable[Any], form: str, section: Data, data: PreparedData
    ) -> Iterator[str]:
        """Write the answers as the lines of a file.

        Args:
            form: one of `forms`.
            section: the recipe's section `data`; some forms follow the layout of the user's own files.
            data: the data that was prepared from it.
        """

    def exported(
        self, model: nn.Module, place: Path, normalize: Normalization, max_length: int, texts: int
    ) -> Exported:
        """What a model needs besides its graphs to answer without this package.

        Args:
            place: the model's folder.
            texts: number of texts in a row, 1 or 2.

        Raises:
            InputError: models of this kind of task cannot be exported.
        """
        raise InputError(f"export: {place}: models for this kind of task cannot be exported")


def model_labels(model: nn.Module) -> list[str]:
    """Names of a model's outputs, in their order."""
    config: Any = model.config
    names = config["id2label"] if isinstance(config, dict) else config.id2label
    return [names[key] for key in sorted(names, key=int)]

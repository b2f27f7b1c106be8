"""How rows are written and encoded: what each kind of task decides in the stage `prepare`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.data.corpus import Corpus
from dtrain.data.write import Encode
from dtrain.recipe.data import Data
from dtrain.recipe.models import EncoderSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Preparing(ABC):
    """How one kind of task turns a corpus into encoded rows."""

    @abstractmethod
    def write(self, corpus: Corpus, data: Data, folder: Path) -> None:
        """Write data.json and the rows of every part; row ids are consecutive over all parts."""

    def normalised(self, texts: Iterable[list[str]], data: Data) -> Iterator[list[str]]:
        """Normalise batches of texts of written rows, to build a vocabulary; by default they are normalised already."""
        return iter(texts)

    @abstractmethod
    def tokenizer(
        self, spec: EncoderSpec | None, texts: Iterable[list[str]], data: Data, targets: Iterable[list[str]] = ()
    ) -> PreTrainedTokenizerFast:
        """A tokenizer whose vocabulary is built from batches of normalised texts.

        Args:
            spec: the section of the transformer that uses the tokenizer; None: the tokenizer that students share.
            texts: batches of the texts that models read.
            targets: batches of the texts that models generate, for tasks whose labels are texts.
        """

    def complete(self, tokenizer: PreTrainedTokenizerFast, source: str) -> None:
        """Check a tokenizer that comes with a pretrained model, and complete it, before anything is written.

        Args:
            source: the model's folder, or its name on the hub.

        Raises:
            InputError: the tokenizer is unsuitable for this kind of task.
        """
        return

    def save(self, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Write a tokenizer's files."""
        tokenizer.save_pretrained(folder)

    def record(self, tokenizer: PreTrainedTokenizerFast, spec: object) -> dict[str, Any]:
        """Entries of `encoded.json` about a tokenizer that only this kind of task has.

        Args:
            spec: the section of the model that brings the tokenizer; None: the tokenizer that students share.
        """
        return {}

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> Encode:
        """A function that encodes rows as token ids; it can be sent to worker processes."""

    @abstractmethod
    def specials(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> int:
        """Number of special tokens in each row, for tasks in which every other token is a character; else 0."""

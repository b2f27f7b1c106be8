"""How rows are written and encoded: what each kind of task decides of the stage `prepare`."""

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
    """One kind of task's way from a corpus to encoded rows."""

    @abstractmethod
    def write(self, corpus: Corpus, data: Data, folder: Path) -> None:
        """Write the rows of every part, with ids counted over the parts, and data.json."""

    def normalised(self, texts: Iterable[list[str]], data: Data) -> Iterator[list[str]]:
        """Batches of the texts of written rows as vocabularies are counted on them; by default the rows' own."""
        return iter(texts)

    @abstractmethod
    def tokenizer(
        self, spec: EncoderSpec | None, texts: Iterable[list[str]], data: Data, targets: Iterable[list[str]] = ()
    ) -> PreTrainedTokenizerFast:
        """A tokenizer whose vocabulary is counted on batches of texts that are normalised.

        Args:
            spec: of the transformer that reads with it; None: the students'.
            targets: batches of the texts that are to be written, where a row's label is one.
        """

    def complete(self, tokenizer: PreTrainedTokenizerFast, source: str) -> None:
        """Look at a tokenizer that came with a model, before anything is written.

        Args:
            source: the model's folder, or its name on the hub.

        Raises:
            InputError: it does not serve this kind of task.
        """
        return

    def save(self, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Write a tokenizer's files."""
        tokenizer.save_pretrained(folder)

    def record(self, tokenizer: PreTrainedTokenizerFast, spec: object) -> dict[str, Any]:
        """What `encoded.json` says of a tokenizer beside what it says of every task's.

        Args:
            spec: the section of the model that brings it; None: the students'.
        """
        return {}

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> Encode:
        """What makes token ids of rows; it can be sent to worker processes."""

    @abstractmethod
    def specials(self, tokenizer: PreTrainedTokenizerFast, data: Data) -> int:
        """Tokens of each row that are none of its characters, where a token stands for a character; else 0."""

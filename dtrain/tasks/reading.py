"""How each kind of task reads files into rows. The methods are in the order in which they are called.

This module needs neither torch nor `datasets`, since `dtrain check` and the launching process use it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from dtrain.data.corpus import Corpus
from dtrain.data.files import Source
from dtrain.data.problems import Problems
from dtrain.recipe.data import Data


class Reading(ABC):
    """How one kind of task reads the files that the recipe's section `data` names."""

    @abstractmethod
    def suffixes(self, data: Data) -> set[str]:
        """Suffixes of the files that are read where the recipe names a folder."""

    @abstractmethod
    def format_of(self, part: str, name: str, data: Data) -> str:
        """The format of an existing file, as a name from `data.format`, or "hub".

        Raises:
            InputError: the format cannot be told, or rows of `part` cannot be read from it.
        """

    @abstractmethod
    def read(
        self, data: Data, sources: list[Source], files: list[str], problems: Problems, *, keep_empty: bool = False
    ) -> Corpus:
        """Read the rows of all sources; `number_labels` checks their labels later.

        Args:
            files: names of the source files; a row refers to its file by the position in this list.
            problems: collects what is wrong with rows, and remarks.
            keep_empty: keep rows with an empty text even if nothing can be learnt from them, since `predict` answers
                every row.

        Raises:
            InputError: the recipe's columns or settings do not fit a file.
        """

    def beside(self, data: Data) -> list[tuple[str, str]]:
        """Files that are read together with the sources, as pairs of the recipe's key and the file's name."""
        return []

    @abstractmethod
    def number_labels(self, corpus: Corpus, data: Data, problems: Problems) -> None:
        """Set `corpus.labels`, and `corpus.numbers` to the numbers of the labels in every part.

        Labels that neither the recipe nor the training rows have become `problems`.

        Raises:
            InputError: the label map is invalid, or the training rows have too few different labels.
        """

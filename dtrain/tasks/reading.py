"""How the files of a kind of task become rows: what each kind decides, in the order in which it is asked.

Needs no torch and no `datasets`: `dtrain check` and the launching process read with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from dtrain.data.corpus import Corpus
from dtrain.data.files import Source
from dtrain.data.problems import Problems
from dtrain.recipe.data import Data


class Reading(ABC):
    """One kind of task's way with the files of `data`."""

    @abstractmethod
    def suffixes(self, data: Data) -> set[str]:
        """Suffixes of the files that a folder in the recipe stands for."""

    @abstractmethod
    def format_of(self, part: str, name: str, data: Data) -> str:
        """The format of a file that is there; raises InputError, in the user's words, where none is known."""

    @abstractmethod
    def read(
        self, data: Data, sources: list[Source], files: list[str], problems: Problems, *, keep_empty: bool = False
    ) -> Corpus:
        """The rows of all sources, their labels not yet looked at; problems and remarks are collected.

        Args:
            files: names of the sources, in the order of the rows' numbers of files.
            keep_empty: keep empty texts of which nothing can be learnt, but which want an answer.

        Raises:
            InputError: where the recipe's columns or settings do not fit a file.
        """

    def beside(self, data: Data) -> list[tuple[str, str]]:
        """Files that belong to the sources without being one: the recipe's key and the name of each."""
        return []

    @abstractmethod
    def number_labels(self, corpus: Corpus, data: Data, problems: Problems) -> None:
        """Settle `corpus.labels` and number the labels of every part.

        Raises:
            InputError: for labels that the recipe or the training rows do not know.
        """

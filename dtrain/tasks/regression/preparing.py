"""Storing rows with a number, and statistics of the training rows' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Value

from dtrain.data.corpus import Corpus
from dtrain.data.sources import Rows
from dtrain.recipe.data import Data
from dtrain.tasks.classification.preparing import TextPreparing


class NumberPreparing(TextPreparing):
    """Preparing for task `regression`: the value of a row is its number, in the unit of the user's files."""

    values = Value("float64")

    def values_of(self, rows: Rows, corpus: Corpus) -> Iterator[list[Any]]:
        return ([] if number is None else [number] for number in rows.number)

    def info(self, corpus: Corpus, data: Data) -> dict[str, Any]:
        return {"numbers": corpus.spread, "standardize": data.standardize}

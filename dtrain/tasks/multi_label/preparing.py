"""Storing rows with any number of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Value

from dtrain.data.corpus import Corpus
from dtrain.data.sources import Rows
from dtrain.recipe.data import Data
from dtrain.tasks.classification.preparing import TextPreparing


class LabelSetPreparing(TextPreparing):
    """Preparing for task `multi_label`: the values of a row are the numbers of its labels, in ascending order."""

    values = Value("int32")

    def values_of(self, rows: Rows, corpus: Corpus) -> Iterator[list[Any]]:
        numbers = {label: number for number, label in enumerate(corpus.labels)}
        return (sorted(numbers[label] for label in labels or ()) for labels in rows.several)

    def info(self, corpus: Corpus, data: Data) -> dict[str, Any]:
        return {"threshold": data.threshold}

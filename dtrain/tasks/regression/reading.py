"""Reading texts and pairs of texts with one number each, and checking the numbers."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from dtrain.data.corpus import Corpus
from dtrain.data.files import Source
from dtrain.data.labels import check_all_or_none
from dtrain.data.problems import Problems, RowError, shortened
from dtrain.data.records import kind_of
from dtrain.data.sources import Rows, Target
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.recipe.values import Column
from dtrain.tasks.classification.reading import TextReading

NUMBER = "number"  # the name of a model's only output
# Decimal numbers; float() would also accept 1_000, nan, infinity and digits of other scripts.
WRITTEN = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


class NumberReading(TextReading):
    """Reading for task `regression`. Training rows may lack a number; then teachers label them, as transfer rows."""

    def target(self, data: Data) -> Target:
        return Target("number", read_number, needed=("valid",), words="a number")

    def remark(self, train: Rows, data: Data, sources: list[Source], files: list[str], problems: Problems) -> None:
        bare = int(np.isnan(train.number.values).sum())
        if 0 < bare < len(train):
            problems.remark(
                f"data.train: {bare:,} of {len(train):,} rows have no number: only teachers' outputs are learnt on them"
            )

    def number_labels(self, corpus: Corpus, data: Data, problems: Problems) -> None:
        train = np.unique(corpus.parts["train"].number.values)  # keeps one of all NaN
        train = train[~np.isnan(train)]
        if len(train) < 2:
            found = f"every number is {train[0]:g}" if len(train) else "no row has a number"
            raise InputError(f"data.train: {found} (column {data.columns.label!r}); regression needs different ones")
        corpus.labels = [NUMBER]
        for part, rows in corpus.parts.items():
            bare = np.isnan(rows.number.values)
            corpus.numbers[part] = np.where(bare, -1, 0)
            check_all_or_none(part, bare, rows, corpus.files, problems, what="number")
            known = {number for number in rows.number if number is not None}
            if part != "train" and len(known) == 1:
                problems.remark(
                    f"data.{part}: every number is {known.pop():g}, with which nothing correlates: pearson and spearman are 0 "
                    "there, and metric: loss chooses by the error"
                )


def read_number(value: Any, column: Column) -> float | None:
    """A number from a number or a decimal text; None for null and for an empty text.

    Raises:
        RowError: the value is something else, NaN, or more than 1e18.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        if not WRITTEN.fullmatch(value.strip()):
            raise RowError(f"{column!r} must be a number", f", found {shortened(value)!r}")
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    else:
        raise RowError(f"{column!r} must be a number", f", found {kind_of(value)}")
    # Models compute in float32, whose maximum is 3.4e38, and squared errors must stay below it.
    if math.isnan(number):
        raise RowError(f"{column!r} must be a number", ", found nan")
    if not abs(number) <= 1e18:
        raise RowError(f"{column!r} must be a number of at most 1e18", f", found {value}")
    return number

"""Reading texts and pairs of texts with any number of labels each, and their label map."""

from __future__ import annotations

from typing import Any

import numpy as np

from dtrain.data.corpus import Corpus
from dtrain.data.files import Source
from dtrain.data.labels import check_all_or_none, outside, read_label_file, sorted_labels
from dtrain.data.problems import Problems, RowError, shortened, shown
from dtrain.data.records import kind_of
from dtrain.data.sources import Rows, Target
from dtrain.errors import InputError, suggest
from dtrain.recipe.data import Data
from dtrain.recipe.values import Column
from dtrain.tasks.classification.reading import TextReading


class LabelSetReading(TextReading):
    """Reading for task `multi_label`."""

    def target(self, data: Data) -> Target:
        separator = None if data.separator == "blank" else data.separator

        def read(value: Any, column: Column) -> list[str] | None:
            return read_labels(value, column, separator)

        return Target("several", read, words="labels ([] or an empty text is none of them)")

    def remark(self, train: Rows, data: Data, sources: list[Source], files: list[str], problems: Problems) -> None:
        most = train.several.sizes.max(initial=0)
        if most == 1:
            problems.remark(
                "data.train: no row has more than one label; is task classification meant, or another separator?"
            )

    def number_labels(self, corpus: Corpus, data: Data, problems: Problems) -> None:
        given = data.labels
        if given is not None:
            corpus.labels = read_label_file(given, data.encoding, least=1) if isinstance(given, str) else list(given)
        else:
            corpus.labels = sorted_labels(set(corpus.parts["train"].several.counts()))
            if not corpus.labels:
                raise InputError(f"data.train: no row has a label (column {data.columns.label!r})")
        known = set(corpus.labels)
        for part, rows in corpus.parts.items():
            bare = rows.several.bare
            corpus.numbers[part] = np.where(bare, -1, 0)
            check_all_or_none(part, bare, rows, corpus.files, problems, what="list of labels")
        unknown = [
            (rows, row, label)
            for rows in corpus.parts.values()
            if not known.issuperset(rows.several.counts())
            for row, labels in enumerate(rows.several)
            for label in labels or ()
            if label not in known
        ]
        if unknown:
            rows, row, label = unknown[0]
            why, remedy = outside(data)
            more = f"; {len(unknown) - 1:,} more label(s) of rows are unknown" if len(unknown) > 1 else ""
            problems.add(
                f"{corpus.files[rows.file[row]]}:{rows.line[row]}: label {shortened(label)!r} {why}"
                f"{suggest(label, corpus.labels, 0.5)} (allowed: {shown(corpus.labels)}){more}{remedy}"
            )


def read_labels(value: Any, column: Column, separator: str | None) -> list[str] | None:
    """The labels in a list, or in a text that `separator` (None: white space) divides.

    Null gives None: the row is not labelled. An empty list or text gives an empty list: the row has no label.

    Raises:
        RowError: the value is neither a list nor a text, one of the labels is invalid or empty, or one occurs twice.
    """
    if value is None:
        return None
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(separator)]
        labels = [] if parts == [""] else parts
    elif isinstance(value, list):
        labels = [_label(each, column) for each in value]
    else:
        raise RowError(f"{column!r} must be a list of labels, or a text", f", found {kind_of(value)}")
    if "" in labels:
        raise RowError(f"{column!r} has an empty label", f" in {shortened(str(value))!r}")
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise RowError(f"{column!r} has a label twice", f": {shortened(twice[0])!r}")
    return labels


def _label(value: Any, column: Column) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"{column!r} must be a list of texts or whole numbers", f", found {kind_of(value)} in it")
    return str(value).strip()

"""All rows of a task as its files hold them, and the parts that are cut from the training rows."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

import numpy as np

from dtrain.data.sources import Rows
from dtrain.recipe.data import Data


@dataclass
class Corpus:
    """Raw rows by part, in the order train, valid, test, transfer.

    For tagging a row is a whole document.

    Attributes:
        parts: rows by part.
        files: the files' names; `Rows.file` holds positions in this list.
        numbers: by part, the number of each row's label in `labels`, int64 [N], -1 for none. For tagging, regression
            and multi_label it only says whether a row is labelled (0) or not (-1).
        labels: label names in the order of their numbers; for tagging, names of tags.
    """

    parts: dict[str, Rows]
    files: list[str]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # entity types; tagging only, like the three that follow
    scheme: str | None = None  # of the tags
    privileged: list[str] = field(default_factory=list)  # types of the annotations that teachers may read, in order
    span_end: str | None = None  # inclusive or exclusive: the ends of spans in the user's files, where they hold spans
    remarks: list[str] = field(default_factory=list)  # what the user should know although it is no mistake
    made_up: int = 0  # number of synthetic rows; they are the last of the transfer rows

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows by part; for tagging, of documents."""
        return {part: len(rows) for part, rows in self.parts.items()}

    @property
    def label_counts(self) -> dict[str, dict[str, int]]:
        """By part, the number of rows with each label; for tagging, of entities of each type.

        Parts without any label are left out.
        """
        found: dict[str, dict[str, int]] = {}
        for part, rows in self.parts.items():
            if self.types:
                if not rows.spans.bare.all():
                    types = rows.spans.counts()
                    found[part] = {name: types.get(name, 0) for name in self.types}
                continue
            if not rows.several.bare.all():
                labels = rows.several.counts()
                found[part] = {name: labels.get(name, 0) for name in self.labels}
                continue
            numbers = self.numbers[part]
            counts = np.bincount(numbers[numbers >= 0], minlength=len(self.labels))
            if counts.any():
                found[part] = dict(zip(self.labels, counts.tolist(), strict=True))
        return found

    @property
    def spread(self) -> dict[str, float]:
        """For regression, statistics of the training rows' numbers: rows, least, greatest, mean, deviation.

        The deviation is that of these rows (the sum of squares is divided by N, not N - 1). Sums are rounded once, so
        that they do not depend on the order of the rows. Empty for other tasks.
        """
        numbers = self.parts["train"].number.values
        found = array("d", numbers[~np.isnan(numbers)].tobytes())
        if not found:
            return {}
        mean = math.fsum(found) / len(found)
        deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in found) / len(found))
        return {
            "rows": len(found),
            "least": min(found),
            "greatest": max(found),
            "mean": mean,
            "deviation": deviation,
        }


def parts_to_cut(data: Data) -> dict[str, float]:
    """The parts that have no file and are cut from the training rows: part -> share of the training rows."""
    shares = {"valid": data.split.valid, "test": data.split.test}
    return {part: share for part, share in shares.items() if not getattr(data, part) and share > 0}

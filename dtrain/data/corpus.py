"""All rows of a recipe in memory, as its files hold them, and which parts have no file of their own."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

import numpy as np

from dtrain.data.sources import Rows
from dtrain.recipe.data import Data


@dataclass
class Corpus:
    """Raw rows by part (in the order train, valid, test, transfer), and their labels as int64 [N], -1 for none.

    For tagging a row is a whole document, its number says whether it has spans (0), and `labels` are names of tags. For
    regression and for several labels a row, too, the number only says whether a row is labelled.
    """

    parts: dict[str, Rows]
    files: list[str]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # of entities; tagging only, as the next two
    scheme: str | None = None  # of the tags
    privileged: list[str] = field(default_factory=list)  # types of the annotations that teachers may read, in order
    span_end: str | None = None  # inclusive or exclusive: the ends of spans in the user's files, where they hold some
    remarks: list[str] = field(default_factory=list)  # on what is no mistake, and that the user should know
    made_up: int = 0  # of the transfer rows, the last ones

    @property
    def counts(self) -> dict[str, int]:
        """Rows by part, of tagging documents."""
        return {part: len(rows) for part, rows in self.parts.items()}

    @property
    def label_counts(self) -> dict[str, dict[str, int]]:
        """Rows of each label, of tagging entities of each type, by part; without parts that have no labels."""
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
        """Of regression: the training rows' numbers, how many there are, the least, the greatest, mean and deviation.

        The deviation is that of these rows (divided by their number), not an estimate of others'. Sums are rounded once,
        so that no order of the rows changes them. Empty for other tasks.
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
    """The parts without a file that are cut off the training rows: part -> share of them."""
    shares = {"valid": data.split.valid, "test": data.split.test}
    return {part: share for part, share in shares.items() if not getattr(data, part) and share > 0}

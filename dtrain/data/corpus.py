"""All rows of a recipe, read and checked: labels numbered, missing parts cut. Nothing is written here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from dtrain.data.documents import read_documents
from dtrain.data.files import PARTS, find_sources
from dtrain.data.labels import check_spans, entity_types, label_map, label_numbers
from dtrain.data.problems import Problems
from dtrain.data.remarks import remark_on_labels, remark_on_rows, remark_on_sources
from dtrain.data.schemes import tag_names
from dtrain.data.sources import Rows, read_rows
from dtrain.data.splits import stratified_split
from dtrain.recipe.data import Data


@dataclass
class Corpus:
    """Raw rows by part (in the order train, valid, test, transfer), and their labels as int64 [N], -1 for none.

    For tagging a row is a whole document, its number says whether it has spans (0), and `labels` are names of tags.
    """

    parts: dict[str, Rows]
    numbers: dict[str, np.ndarray]
    labels: list[str]
    files: list[str]
    types: list[str] = field(default_factory=list)  # of entities; tagging only
    scheme: str | None = None  # of its tags
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
                if any(spans is not None for spans in rows.spans):
                    types = Counter(span.type for spans in rows.spans for span in spans or ())
                    found[part] = {name: types[name] for name in self.types}
                continue
            numbers = self.numbers[part]
            counts = np.bincount(numbers[numbers >= 0], minlength=len(self.labels))
            if counts.any():
                found[part] = dict(zip(self.labels, counts.tolist(), strict=True))
        return found


def read_corpus(data: Data, seed: int) -> Corpus:
    """Read every source; `seed` decides which training rows go to a part without a file.

    Raises:
        InputError: up to 20 problems, each with file and line or the recipe's key.
    """
    sources = find_sources(data)
    files = list(dict.fromkeys(source.name for source in sources))
    problems = Problems()
    types: list[str] = []
    scheme = None
    remark_on_sources(sources, problems)
    if data.task == "tagging":
        parts, scheme, remarks = read_documents(data, sources, files, problems)
        problems.remarks += remarks
        problems.raise_if_any()
        types = entity_types(data, parts["train"])
        labels, numbers = tag_names(types), check_spans(data, parts, types, files)
    else:
        parts = read_rows(data, sources, files, problems)
        problems.raise_if_any()
        remark_on_labels(parts["train"], sources, files, data.header, problems)
        labels = label_map(data, parts, problems)
        numbers = label_numbers(data, parts, labels, files)
    remark_on_rows(parts, problems)
    missing = parts_to_cut(data)
    if missing:
        whole, whole_numbers = parts["train"], numbers["train"]
        for part, index in stratified_split(whole_numbers, missing, seed).items():
            parts[part] = whole.take(index.tolist())
            numbers[part] = whole_numbers[index]
    ordered = [part for part in PARTS if part in parts]
    in_order = {part: parts[part] for part in ordered}
    return Corpus(in_order, {p: numbers[p] for p in ordered}, labels, files, types, scheme, problems.remarks)


def parts_to_cut(data: Data) -> dict[str, float]:
    """The parts without a file that are cut off the training rows: part -> share of them."""
    shares = {"valid": data.split.valid, "test": data.split.test}
    return {part: share for part, share in shares.items() if not getattr(data, part) and share > 0}


def check_sources(data: Data, seed: int = 0) -> Corpus:
    """Read and check every row, as `prepare` will.

    Raises InputError. Needs no torch and writes nothing.
    """
    if data.augment is not None:
        from dtrain.augment.words import check_tagger

        check_tagger(data.augment)
    return read_corpus(data, seed)

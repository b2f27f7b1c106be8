"""Reading texts and pairs of texts with one label each, and their label map."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtrain.data.corpus import Corpus
from dtrain.data.files import HUB, SUFFIXES, TABLES, Source, resolve_path, suffix_of
from dtrain.data.labels import check_all_or_none, outside, read_label_file, sorted_labels
from dtrain.data.lines import first_line
from dtrain.data.problems import Problems, shortened, shown
from dtrain.data.remarks import remark_on_labels
from dtrain.data.sources import ONE_LABEL, Rows, Target, read_rows
from dtrain.errors import InputError, suggest
from dtrain.recipe.data import Data
from dtrain.tasks.reading import Reading


class TextReading(Reading):
    """Reading for tasks `classification` and `pairs`: JSON lines, tables, Parquet, and data sets of `datasets`.

    Subclasses read the same files with another kind of label.
    """

    def target(self, data: Data) -> Target:
        """The kind of label that rows have."""
        return ONE_LABEL

    def remark(self, train: Rows, data: Data, sources: list[Source], files: list[str], problems: Problems) -> None:
        """Add remarks on likely mistakes in the training rows."""
        remark_on_labels(train, sources, files, data.header, problems)

    def suffixes(self, data: Data) -> set[str]:
        """As the base class; .txt files count where `data.format` says how to read them."""
        return {*SUFFIXES, ".txt"} if data.format in SUFFIXES.values() else {*SUFFIXES}

    def format_of(self, part: str, name: str, data: Data) -> str:
        """As the base class; `auto` goes by the suffix.

        Transfer files go by the suffix even where a format is set, since they often come from elsewhere.
        """
        if name.startswith(HUB):
            if data.format not in ("auto", "dataset") and part != "transfer":
                raise InputError(
                    f"{name}: is a hub data set, but data.format is {data.format!r} (allowed: auto, dataset)"
                )
            return "hub"
        path = resolve_path(name)
        if path.is_dir():
            if data.format not in ("auto", "dataset") and part != "transfer":
                raise InputError(f"{name}: is a folder, but data.format is {data.format!r}")
            return "dataset"
        if path.stat().st_size == 0:
            raise InputError(f"{name}: the file is empty")
        suffix = suffix_of(path)
        by_suffix = SUFFIXES.get(suffix)
        if by_suffix == "parquet":
            return by_suffix
        if part == "transfer":
            if by_suffix or data.format == "lines":
                return by_suffix or "lines"
            if suffix == ".txt":
                return data.format if data.format in TABLES and _looks_like_table(path, data) else "lines"
        if data.format == "dataset":
            raise InputError(f"{name}: is a file; data.format 'dataset' reads folders written by save_to_disk")
        if data.format == "lines":
            raise InputError(f"{name}: plain lines hold no labels; data.format 'lines' is for transfer files only")
        if data.format != "auto":
            return data.format
        if by_suffix:
            return by_suffix
        if suffix == ".txt":
            raise InputError(f"{name}: how a .txt holds labels must be said: set data.format (tsv, csv or jsonl)")
        raise InputError(
            f"{name}: the suffix {suffix or '(none)'} tells no format; set data.format (jsonl, tsv or csv), "
            "or name the file .jsonl, .json, .tsv or .csv"
        )

    def read(
        self, data: Data, sources: list[Source], files: list[str], problems: Problems, *, keep_empty: bool = False
    ) -> Corpus:
        """As the base class; rows with an empty text are kept in any case."""
        parts = read_rows(data, sources, files, problems, self.target(data))
        if not problems and "train" in parts:
            self.remark(parts["train"], data, sources, files, problems)
        return Corpus(parts, files)

    def number_labels(self, corpus: Corpus, data: Data, problems: Problems) -> None:
        corpus.labels = _label_map(data, corpus.parts, problems)
        corpus.numbers = _label_numbers(data, corpus, problems)


def _looks_like_table(path: Path, data: Data) -> bool:
    """Whether a .txt for transfer is a table like the other files; as plain lines, its labels would become text."""
    first = first_line(path, data.encoding)
    separator = Source("transfer", "", data.format, delimiter=data.delimiter).separator
    return (separator != "," and separator in first) or (data.header and first == data.columns.text)


def _label_map(data: Data, parts: dict[str, Rows], problems: Problems) -> list[str]:
    """Labels in the order of their numbers.

    Where `data.labels` lists names and the rows hold positions in that list (from 0), the rows get the names.

    Raises:
        InputError: the label file is invalid, or fewer than two labels are found.
    """
    if data.labels is not None:
        given = data.labels
        labels = read_label_file(given, data.encoding, least=2) if isinstance(given, str) else list(given)
        _name_numbers(labels, parts, problems)
        return labels
    found = set(parts["train"].label.counts())
    if len(found) < 2:
        raise InputError(f"data.train: only one label ({shown(map(repr, found))}); classification needs at least 2")
    return sorted_labels(found)


def _name_numbers(labels: list[str], parts: dict[str, Rows], problems: Problems) -> None:
    """Replace positions in `labels` by the names, if all labels of rows are such positions and none is a name."""
    found = {label for rows in parts.values() for label in rows.label.counts()}
    names = {str(number): label for number, label in enumerate(labels)}
    if not found or not found <= set(names) or found & set(labels):
        return
    for rows in parts.values():
        rows.label = rows.label.renamed(names)
    problems.remark(
        f"data.labels: names the numbers of the rows: 0 is {labels[0]!r}, {len(labels) - 1} is {labels[-1]!r}"
    )


def _label_numbers(data: Data, corpus: Corpus, problems: Problems) -> dict[str, np.ndarray]:
    """The labels of every part as numbers, int64 [N], -1 for none.

    Labels outside the map, and a test part in which only some rows are labelled, become `problems`.
    """
    numbers = {label: number for number, label in enumerate(corpus.labels)}
    columns = {}
    unknown: list[tuple[Rows, int]] = []
    for part, rows in corpus.parts.items():
        codes = rows.label.codes
        columns[part] = np.array([*(numbers.get(name, -1) for name in rows.label.names), -1], dtype=np.int64)[codes]
        check_all_or_none(part, codes < 0, rows, corpus.files, problems)
        unknown += [(rows, i) for i in np.flatnonzero((columns[part] < 0) & (codes >= 0)).tolist()]
    if unknown:
        _add_unknown(data, corpus, unknown, problems)
    return columns


def _add_unknown(data: Data, corpus: Corpus, unknown: list[tuple[Rows, int]], problems: Problems) -> None:
    """Add one problem for all rows, of any part, whose label is not in the label map."""
    rows, first = unknown[0]
    label = str(rows.label[first])
    why, remedy = outside(data)
    others = list(dict.fromkeys(repr(rows.label[i]) for rows, i in unknown if rows.label[i] != label))
    more = f"; {len(unknown) - 1:,} more row(s) have" if len(unknown) > 1 else ""
    more += f" this label or {shown(others, 5)}" if others else " this label" if more else ""
    header = "; if the file has a header, set data.header: true" if not data.header and rows.line[first] == 1 else ""
    place = f"{corpus.files[rows.file[first]]}:{rows.line[first]}: label {shortened(label)!r} {why}"
    problems.add(f"{place}{suggest(label, corpus.labels, 0.5)} (allowed: {shown(corpus.labels)}){more}{remedy}{header}")

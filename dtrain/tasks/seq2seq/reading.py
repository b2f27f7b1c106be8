"""Reading pairs of a source and a target text."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np

from dtrain.data.corpus import Corpus
from dtrain.data.files import HUB, SUFFIXES, Source, existing_file, resolve_path, suffix_of
from dtrain.data.labels import check_all_or_none
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems, RowError
from dtrain.data.records import kind_of
from dtrain.data.sources import Rows, Target, read_rows
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.recipe.values import Column
from dtrain.tasks.classification.reading import TextReading

TARGET = "target"  # name of the only label: a row with a target has number 0


class SidesReading(TextReading):
    """Reading for task `seq2seq`. Transfer rows have sources only; teachers generate their targets."""

    def format_of(self, part: str, name: str, data: Data) -> str:
        if data.targets is not None and part == "transfer" and _may_be_sources(name):
            return "lines"  # as the files of sources beside it, whose suffix is often that of a language
        if data.targets is None or part == "transfer":
            try:
                return super().format_of(part, name, data)
            except InputError as error:
                if part == "transfer" or not _may_be_sources(name):
                    raise
                hint = f"; where its lines are sources alone, name the file of their targets in data.targets.{part}"
                raise InputError([problem + hint for problem in error.problems]) from None
        if name.startswith(HUB) or resolve_path(name).is_dir():
            what = "a hub data set" if name.startswith(HUB) else "a folder"
            raise InputError(f"{name}: is {what}; with data.targets both sides are files, line by line")
        if data.format not in ("auto", "lines"):
            raise InputError(
                f"data.format: {data.format!r} has both sides in one file, and with data.targets each is read line by line; "
                "leave out one of the two"
            )
        if resolve_path(name).stat().st_size == 0:
            raise InputError(f"{name}: the file is empty")
        return "lines"

    def beside(self, data: Data) -> list[tuple[str, str]]:
        if data.targets is None:
            return []
        parts = data.targets.model_dump()
        return [(f"{data.key}.targets.{part}", name) for part, names in parts.items() for name in names]

    def read(
        self, data: Data, sources: list[Source], files: list[str], problems: Problems, *, keep_empty: bool = False
    ) -> Corpus:
        """As the base class; with `data.targets`, sources and targets are read line by line from two files."""
        own = [source for source in sources if source.part != "transfer"]
        if data.targets is None or not own:  # `predict` reads sources alone
            return super().read(data, sources, files, problems, keep_empty=keep_empty)
        if data.columns.target not in (None, "target"):  # the latter is what a resolved recipe has
            problems.remark(
                f"{data.key}.columns.target: {data.columns.target!r} is not read: the lines of data.targets are the targets"
            )
        names = [name for _, name in self.beside(data)]
        places = [existing_file(name, key) for key, name in self.beside(data)]
        parts: dict[str, Rows] = {}
        if len(own) != len(names):  # a pattern or a folder stands for several files
            raise InputError(f"data.targets: {len(names)} file(s) for {len(own)} of sources: name each one by itself")
        for source, name, place in zip(own, names, places, strict=True):
            rows = parts.setdefault(source.part, Rows())
            _read_pairs(data, source, files.index(source.name), (place, name), rows, problems)
        others = [source for source in sources if source.part == "transfer"]
        parts |= read_rows(data, others, files, problems, self.target(data)) if others else {}
        if not problems and "train" in parts:
            self.remark(parts["train"], data, sources, files, problems)
        return Corpus(parts, files)

    def target(self, data: Data) -> Target:
        return Target("target", read_target, words="a text", of_words=True)

    def remark(self, train: Rows, data: Data, sources: list[Source], files: list[str], problems: Problems) -> None:
        same = sum(target == text for text, target in zip(train.text, train.target, strict=True))
        if same > len(train) / 2:
            problems.remark(f"data.train: {same:,} of {len(train):,} rows have the same text on both sides")

    def number_labels(self, corpus: Corpus, data: Data, problems: Problems) -> None:
        """As the base class; the number of a row is 0 if it has a target, else -1."""
        if find_spec("sacrebleu") is None:
            install = "pip install 'dtrain[translation]'"
            raise InputError(f"{data.key}.task: 'seq2seq' is scored by sacrebleu, which is not installed: {install}")
        if find_spec("lxml") is None:  # sacrebleu always imports it
            raise InputError(
                f"{data.key}.task: 'seq2seq' is scored by sacrebleu, whose lxml is not installed: pip install lxml"
            )
        corpus.labels = [TARGET]
        for part, rows in corpus.parts.items():
            bare = rows.target.bare
            corpus.numbers[part] = np.where(bare, -1, 0)
            check_all_or_none(part, bare, rows, corpus.files, problems, what="target")


def _may_be_sources(name: str) -> bool:
    """Whether this is a non-empty file whose suffix is none of the known formats."""
    path = resolve_path(name)
    return path.is_file() and path.stat().st_size > 0 and suffix_of(path) not in SUFFIXES


def _read_pairs(
    data: Data, source: Source, number: int, target: tuple[Path, str], rows: Rows, problems: Problems
) -> None:
    """Append pairs of lines of two files to `rows`; `number` is the position of the source among all files."""
    place, name = target
    sides = (
        numbered_lines(source.files[0], source.name, problems, source.encoding, "data.encoding"),
        numbered_lines(place, name, problems, source.encoding, "data.encoding"),
    )
    lengths, before = [0, 0], len(problems.lines)
    for line, (read, written) in enumerate(zip_longest(*sides), start=1):
        lengths = [
            line if found is not None else length for found, length in zip((read, written), lengths, strict=True)
        ]
        if read is None or written is None:
            continue
        for side, (_, text) in zip((source.name, name), (read, written), strict=True):
            if not text.strip() or (side == name and not _is_seen(text)):
                problems.add_row(side, line, RowError("is empty", ": both sides of a pair need words"))
        rows.append(read[1], None, number, line, target=written[1])
    if lengths[0] != lengths[1] and len(problems.lines) == before:  # a file with other problems may have lost lines
        problems.add(
            f"{source.key}: {source.name} has {lengths[0]:,} lines, and {name} {lengths[1]:,}: each line of one is the other "
            "side of the same line there"
        )


def read_target(value: Any, column: Column) -> str | None:
    """A target text; None for null and for a text without visible characters.

    Raises:
        RowError: the value is no text, or holds half of a surrogate pair.
    """
    if value is None or (isinstance(value, str) and not _is_seen(value)):
        return None
    if not isinstance(value, str):
        raise RowError(f"{column!r} must be a text", f", found {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # checked in the same way as sources
        raise RowError(f"{column!r} holds half a character", f" (\\u{ord(value[error.start]):04x})") from None
    return value


def _is_seen(text: str) -> bool:
    """Whether a text has visible characters: others, such as blanks and U+200B, are lost by normalisation."""
    return any(
        character.isprintable() or category(character) not in ("Cc", "Cf")
        for character in text
        if not character.isspace()
    )

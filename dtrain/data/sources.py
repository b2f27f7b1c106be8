"""From records to rows: every text and label is read and checked once, before anything is written."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any

import numpy as np

from dtrain.data.columns import (
    JsonColumn,
    KeyColumn,
    LabelColumn,
    LabelSetColumn,
    NumberColumn,
    SpanColumn,
    TargetColumn,
    TextColumn,
    hashes,
)
from dtrain.data.files import TABLES, Source, resolve_path
from dtrain.data.ids import SeenIds, read_once_or_twice
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems, RowError, shown
from dtrain.data.records import Record, Wanted, kind_of, missing_columns, read_records
from dtrain.errors import suggest
from dtrain.recipe.data import Data
from dtrain.recipe.sides import Layout
from dtrain.recipe.values import Column


@dataclass
class Rows:
    """The rows of one part, column by column. `label` is None in a row without a label; `key` holds the users' ids.

    In place of `label`, a row has `spans` for tagging (where it is a document), `number` for regression, `several` for
    multi_label, and `target` for seq2seq.
    """

    text: TextColumn = field(default_factory=TextColumn)
    text_b: TextColumn = field(default_factory=TextColumn)  # pairs only, else empty
    label: LabelColumn = field(default_factory=LabelColumn)
    spans: SpanColumn = field(default_factory=SpanColumn)  # tagging only, else empty
    privileged: SpanColumn = field(default_factory=SpanColumn)  # tagging with `columns.privileged` only, else empty
    number: NumberColumn = field(default_factory=NumberColumn)  # regression only, else empty
    several: LabelSetColumn = field(default_factory=LabelSetColumn)  # multi_label only, else empty
    target: TargetColumn = field(default_factory=TargetColumn)  # seq2seq only, else empty
    # For rows with sides, [text by side, whether they are in several columns]; `text` is that of the first side.
    sides: JsonColumn = field(default_factory=JsonColumn)
    key: KeyColumn = field(default_factory=KeyColumn)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def file(self) -> array[int]:
        """The number of each row's file."""
        return self.key.file

    @property
    def line(self) -> array[int]:
        """Each row's line in its file."""
        return self.key.line

    def append(
        self, text: str, key: str | None, file: int, line: int, *, text_b: str | None = None, **target: Any
    ) -> None:
        """Append a row.

        Args:
            key: the user's id; None: the row has none.
            file: the number of its file.
            target: its `label`, or the column that its task has in place of a label.
        """
        self.text.append(text)
        if text_b is not None:
            self.text_b.append(text_b)
        for name, value in target.items():
            getattr(self, name).append(value)
        self.key.add(key, file, line)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at `index`, int [M], in that order."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        return Rows(**{name: column.take(index) for name, column in columns.items() if len(column)})

    def hashes(self) -> np.ndarray:
        """A hash of the text, or the pair of texts, of each row, uint64 [N]; see `columns.hashes`."""
        return hashes(self.text, self.text_b) if self.text_b else hashes(self.text)


@dataclass(frozen=True)
class Target:
    """What the rows of a task are labelled with.

    Attributes:
        name: the column of `Rows` that holds the target.
        read: makes the target from the value in a record's column and the column's name; returns None where there is
            none, and raises RowError for an invalid value.
        needed: the parts in which every row must have a target.
        words: the target in words, for messages.
        of_words: whether the text of a row with a target must not be empty.
    """

    name: str
    read: Callable[[Any, Column], Any]
    needed: tuple[str, ...] = ("train", "valid")
    words: str = "a label"
    of_words: bool = False


def one_label(value: Any, column: Column) -> str | None:
    """A label from a record: a text or a whole number; None where it is empty. Raises RowError for other values."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        several = " (a row has one label here; give each its own row, or choose)" if type(value) is list else ""
        raise RowError(f"{column!r} must be a text or a whole number", f", found {kind_of(value)}{several}")
    return (value.strip() or None) if value else None


ONE_LABEL = Target("label", one_label)


def read_rows(
    data: Data, sources: list[Source], files: list[str], problems: Problems, target: Target = ONE_LABEL
) -> dict[str, Rows]:
    """The rows of all sources by part.

    Args:
        files: names of all files; `Rows.file` counts in them.
        problems: collects the problems with rows, and files without rows.
        target: what the rows are labelled with.

    Raises:
        InputError: a column's name or number does not fit a file's format, or there are too many problems.
    """
    for source in sources:
        check_columns(data, source, problems)
    problems.raise_if_any()

    def read(seen: SeenIds) -> dict[str, Rows]:
        parts: dict[str, Rows] = {}
        has_id = False
        for source in sources:
            rows = parts.setdefault(source.part, Rows())
            kind = RecordReader if source.layout is None else SidesReader
            reader = kind(data, source, files.index(source.name), rows, seen, problems, target)
            reader.read()
            has_id |= bool(reader.has_id)
        if data.columns.id is not None and not has_id and not problems:
            problems.add(f"data.columns.id: no file has a column {data.columns.id!r}")
        return parts

    return read_once_or_twice(read, problems)


def check_columns(data: Data, source: Source, problems: Problems) -> None:
    """Add a problem where columns are not given by number for a table without a header, and by name otherwise."""
    if source.layout is not None:
        check_layout(source, source.layout, problems)
        return
    if source.format == "lines":
        if data.columns.text_b is not None:
            problems.add(f"{source.key}: {source.name}: plain lines hold one text, and task 'pairs' needs two")
        return
    numbered = source.format in TABLES and not data.header
    needed = ["text", "text_b", "id", "privileged"] + ["label"] * (source.part != "transfer")
    for name in needed:
        column: Column | None = getattr(data.columns, name)
        if column is None or isinstance(column, int) == numbered:
            continue
        if numbered:
            reason = (
                f"{column!r} is a name, but {source.name} has no header (data.header is false): give a number from 0"
            )
        elif source.format in TABLES:
            reason = f"{column} is a number, but {source.name} has a header: give a name, or set data.header: false"
        else:
            reason = f"{column} is a number, but the columns of {source.name} have names: give a name"
        problems.add(f"data.columns.{data.columns.key_of(name)}: {reason}")


class RecordReader:
    """Reads one source of records into `rows`."""

    def __init__(
        self,
        data: Data,
        source: Source,
        number: int,
        rows: Rows,
        seen: SeenIds,
        problems: Problems,
        target: Target = ONE_LABEL,
    ) -> None:
        self.data, self.source, self.number, self.rows, self.seen = data, source, number, rows, seen
        self.problems = problems
        self.target = target
        columns = data.columns
        self.header = data.header
        self.label_needed = source.part in target.needed
        self.label_allowed = source.part != "transfer"
        self.text, self.text_b, self.label, self.id = columns.text, columns.text_b, columns.label, columns.id
        self.has_id: bool | None = None  # the first row decides whether all rows of the file have an id, or none

    def read(self) -> None:
        before = len(self.rows)
        needed = [*self.wanted, *[self.label] * (self.source.part in ("train", "valid"))]
        labels = self.data.labels if isinstance(self.data.labels, list) else ()
        wanted = Wanted([column for column in needed if column is not None], self.label, labels)
        for line, record in read_records(self.source, self.header, self.text, self.problems, wanted):
            try:
                self.add(line, record)
            except ValueError as error:
                self.problems.add_row(self.source.name, line, error)
        if len(self.rows) == before and not self.problems:
            self.problems.add(f"{self.source.key}: {self.source.name}: holds no rows")

    @property
    def wanted(self) -> list[Column | None]:
        """The columns of the texts."""
        return [self.text, self.text_b]

    def add(self, line: int, record: Record) -> None:
        """Append one record as a row; raises ValueError, with a message for the user, where it is invalid."""
        text = text_of(record, self.text)
        text_b = text_of(record, self.text_b) if self.text_b is not None else None
        target = self._target(record) if self.label_allowed else None
        if self.target.of_words and target is not None and not text.strip():
            raise RowError(f"{self.text!r} is empty: both sides of a pair need words")
        key = self.key_of(line, record) if self.id is not None else None
        self.rows.append(text, key, self.number, line, text_b=text_b, **{self.target.name: target})

    def _target(self, record: Record) -> Any:
        if self.label not in record:
            if self.label_needed:
                raise missing_columns([self.label], record)
            return None
        target = self.target.read(record[self.label], self.label)
        if target is None and self.label_needed:
            raise RowError(f"{self.label!r} is empty: a row for training or validation needs {self.target.words}")
        return target

    def key_of(self, line: int, record: Record) -> str | None:
        """The user's id of a record; None in a file without the column, because often only a test file has ids."""
        assert self.id is not None
        if self.has_id is None:
            self.has_id = self.id in record
        if not self.has_id and self.id not in record:
            return None
        if self.id not in record:
            raise missing_columns([self.id], record)
        value = record[self.id]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            found = "an empty text" if value == "" else kind_of(value)
            raise RowError(f"{self.id!r} must be a text or a whole number", f", found {found}")
        key = str(value)
        self.seen.see(self.source.part, key, self.source.name, line)
        return key


def text_of(record: Record, column: Column) -> str:
    """The text in a record's column; raises RowError where it is missing or no text."""
    try:
        value = record[column]
    except KeyError:
        raise missing_columns([column], record) from None
    if not isinstance(value, str):
        raise RowError(f"{column!r} must be a text", f", found {kind_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON can contain half of a surrogate pair, which no tokenizer and no Arrow column accepts.
            raise RowError(f"{column!r} holds half a character", f" (\\u{ord(value[error.start]):04x})") from None
    return value


# --- several sides of a row ----------------------------------------------------------------------------


def check_layout(source: Source, layout: Layout, problems: Problems) -> None:
    """Add problems with the columns of a file whose rows have sides, as `check_columns` does for other files."""
    if source.format == "lines":
        if len(layout.columns) > 1 and not layout.beside:
            sides = " and ".join(side for side, _ in layout.columns)
            problems.add(
                f"{source.key}: {source.name}: plain lines hold one text, and here {sides} are looked for: write "
                "{path: FILE, columns: {SIDE: 0}}, or a file for each side"
            )
        return
    table = source.format in TABLES
    for side, column in layout.columns:
        if table and isinstance(column, int) == layout.header:
            found = (
                f"column {column} of side {side!r} is a number, but the file has a header: give names, or set data.header: false"
                if layout.header
                else f"column {column!r} of side {side!r} is a name, but data.header is false: give numbers from 0 as "
                f"{{path: {source.name}, columns: {{{side}: 0}}}}"
            )
            problems.add(f"{source.key}: {source.name}: {found}")
        elif not table and isinstance(column, int):
            problems.add(
                f"{source.key}: {source.name}: column {column} of side {side!r} is a number, but the columns of this file have "
                "names: give a name"
            )


class SidesReader(RecordReader):
    """Reads one source whose rows have one or several sides."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert self.source.layout is not None
        self.layout = self.source.layout
        self.label, self.id, self.header = self.layout.label, self.layout.id, self.layout.header

    def read(self) -> None:
        """As the base class; where each side has a file of its own, their lines with the same number are a row."""
        if not self.layout.beside:
            if self.source.format == "lines" or self.layout.whole:
                super().read()
            else:
                self._read_what_there_is()
            return
        before = len(self.rows)
        if self.label_needed:
            self.problems.add(
                f"{self.source.key}: {self.source.name}: plain lines hold no labels; files by side are for data.transfer"
            )
            return
        names = dict(self.layout.beside)
        sides = [
            numbered_lines(resolve_path(name), name, self.problems, self.source.encoding, self.source.encoding_key)
            for name in names.values()
        ]
        lengths = dict.fromkeys(names, 0)
        for number, lines in enumerate(zip_longest(*sides), start=1):
            lengths |= {side: number for side, found in zip(names, lines, strict=True) if found is not None}
            if None in lines:
                continue
            texts = {side: line[1] for side, line in zip(names, lines, strict=True)}
            empty = [side for side, text in texts.items() if not text.strip()]
            for side in empty:
                self.problems.add_row(names[side], number, RowError("is empty", EMPTY))
            if not empty:
                self._append(texts, True, None, None, number)
        if len(set(lengths.values())) > 1 and not self.problems:
            counts = ", and ".join(f"{names[side]} has {count:,}" for side, count in lengths.items())
            self.problems.add(f"{self.source.key}: unequal numbers of lines: {counts}: line by line they are one row")
        elif len(self.rows) == before and not self.problems:
            self.problems.add(f"{self.source.key}: {self.source.name}: holds no rows")

    @property
    def wanted(self) -> list[Column | None]:
        return [column for _, column in self.layout.columns] if self.layout.whole else []

    def _read_what_there_is(self) -> None:
        """Read a file that may lack the columns of some sides; if it has none of them, that is reported once."""
        known = [column for _, column in self.layout.columns]
        records = read_records(self.source, self.header, known[0], Problems())
        first = next((record for _, record in records), None)
        if first is not None and self.source.format != "jsonl" and not any(column in first for column in known):
            self.problems.add(f"{self.source.name}:1: {_no_side(self.layout, self.source, first)}")
            return
        super().read()

    def add(self, line: int, record: Record) -> None:
        """As the base class."""
        if self.source.format == "lines":
            ((side, _),) = self.layout.columns
            texts, columns = {side: record[self.text]}, 1
        else:
            there = {
                side: column
                for side, column in self.layout.columns
                if self.layout.whole or record.get(column) is not None
            }
            if not there:
                raise _no_side(self.layout, self.source, record)
            texts, columns = {side: text_of(record, column) for side, column in there.items()}, len(set(there.values()))
            for side, text in texts.items():
                if not text.strip():
                    raise RowError(f"side {side!r} is empty", EMPTY)
        target = self._target(record) if self.label_allowed else None
        self._append(texts, columns > 1, target, self.key_of(line, record) if self.id is not None else None, line)

    def _append(self, texts: dict[str, str], parallel: bool, target: Any, key: str | None, line: int) -> None:
        first = next(iter(texts.values()))
        self.rows.append(first, key, self.number, line, **{self.target.name: target}, sides=[texts, parallel])


EMPTY = (
    ": both sides of a pair need words; a row of one side alone stands in a file, or a JSON object, without the other"
)


def _no_side(layout: Layout, source: Source, record: Record) -> RowError:
    known = [column for _, column in layout.columns]
    empty = [column for column in dict.fromkeys(known) if column in record]
    if empty:
        of = f"{' and '.join(map(repr, empty))} {'is' if len(empty) == 1 else 'are'} null"
        return RowError(f"{of}: a row needs the text of one side at least")
    words = [str(column) for column in record]
    near = suggest(str(known[0]), words, 0.5)
    side = layout.columns[0][0]
    remedy = f"; say what it holds: {{path: {source.name}, columns: {{{side}: COLUMN}}}}"
    return RowError(f"has none of the columns {', '.join(map(repr, known))}", f"{near} (found: {shown(words)}){remedy}")

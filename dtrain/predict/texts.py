"""Reading the rows that are to be answered: from a file, from standard input, or the prepared test rows."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, repeat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from dtrain.data import EncodedSplit
from dtrain.data.columns import KeyColumn, Values
from dtrain.data.files import TABLES, Source, resolve_path, suffix_of
from dtrain.data.lines import first_line
from dtrain.data.problems import Problems, shown
from dtrain.data.records import read_records
from dtrain.data.schemes import Span
from dtrain.data.sources import Rows
from dtrain.errors import InputError, suggest
from dtrain.log import warn
from dtrain.metrics.entities import spans
from dtrain.recipe.data import DATA, Data
from dtrain.recipe.values import Column
from dtrain.tasks.answers import Texts
from dtrain.tasks.corpus import READINGS, find_sources
from dtrain.tasks.rules import rules_of

if TYPE_CHECKING:
    from datasets import Dataset

STDIN = Path("/dev/stdin")
ROLES = ("text", "text_b", "id", "privileged")  # columns of rows without labels
ARRAY = re.compile(r"\s*\[\s*(\{|$)")  # the beginning of an array of JSON objects
HEADER_CELL = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
# Advice in messages about a recipe's files, and its replacement by options of `predict` for the input. Changing the
# recipe's keys would be wrong there: a recipe with another data.quoting needs other models than those that are trained.
ADVICE = (
    (re.compile(r"set data\.(encoding|delimiter|quoting): "), r"give --\1 "),
    (re.compile(r"set data\.format \("), "give --format (lines, "),
    (re.compile(r"set data\.header: false and data\.columns to numbers"), "give --columns text=0"),
    (re.compile(r"\(1 column, counted from 0\)"), "(1 column); give --columns text=0"),
    (re.compile(r"; set data\.columns to its names"), "; give --columns text=NAME"),
    (re.compile(r", or set data\.header: false"), ""),
    (re.compile(r"data\.columns\."), "--columns: "),
    (re.compile(r"data\.transfer: "), "--input: "),
)
# The first bytes of binary files on standard input, and the suffix of such files.
PACKED = {b"\x1f\x8b": ".txt.gz", b"PAR1": ".parquet"}
COMPARED_ROWS = 100  # rows of a table that are read to tell whether the first is a header


def read_texts(
    data: Data,
    name: str,
    format: str | None = None,
    columns: Sequence[str] = (),
    as_written: Mapping[str, str | None] = MappingProxyType({}),
    *,
    privileged: bool = False,
) -> Texts:
    """The rows of a file, read like the recipe's unlabelled files; labels are ignored.

    A row's id is the user's id if the file has the recipe's id column, else its position from 0. The texts are kept in a
    temporary file (see `dtrain.data.columns`), so that the file may be larger than the memory.

    Args:
        data: the section `data` of the recipe or of the model folder.
        name: a path, or `-` for standard input, which is read to its end.
        format: a value of `data.format`; default: by the suffix, else the recipe's format if the first line fits it,
            else plain lines.
        columns: words `role=column`, in which a column is a name, or a number from 0 for a file without a header;
            default: the recipe's columns.
        as_written: values of the recipe's keys encoding, delimiter and quoting for this file; default: the recipe's.
        privileged: whether to read the annotations in the recipe's `columns.privileged` as well.

    Raises:
        InputError: something is wrong with the file or an option; messages name file and line, or the option.
    """
    data = data.model_copy() if privileged else _changed(data, {"privileged": None})
    data.stands_at(DATA)  # so that messages name `data`, as the patterns of ADVICE expect
    with _file(name) as path:
        try:
            data = _written_so(_with_columns(data, columns), as_written)
            kind = format or _format(data, path, name)
            asked = _roles(columns, data)
            if kind == "lines" and asked not in ({}, {"text": 0}):
                kinds = [each for each in ("jsonl", *TABLES) if each in rules_of(data.task).formats]
                raise InputError(
                    f"--columns: {path} is read as plain lines, which have no columns; say what it is with --format "
                    f"({', '.join(kinds)})"
                )
            source = Source("transfer", path, kind, data.encoding, data.delimiter, data.quoting)
            if source.format in TABLES and not data.header and (header := _header_of(source, data)):
                if not columns:
                    raise InputError(
                        f"data.transfer: {source.name}: begins with the header {header}, but the recipe reads column "
                        f"{data.columns.text} of files without one: give --columns text=NAME (or text="
                        f"{data.columns.text}, if that is a row)"
                    )
                warn(
                    f"--columns: by numbers, so the first row of {name}, {header}, is answered, too; if it is a header, give "
                    "its names"
                )
            rows = _read(data, source, must_have_ids=asked.get("id") is not None)
            if source.format in TABLES and not data.header and not columns:
                _check_not_ids(rows.text, source, data)
        except InputError as error:
            raise InputError([_in_terms_of_options(problem, path, name) for problem in error.problems]) from None
    return Texts(Ids(rows.key), rows.text, rows.text_b, rows.line, [spans or [] for spans in rows.privileged])


@contextmanager
def _file(name: str) -> Iterator[str]:
    """The path of a file; for `-` that of a copy, since the format is guessed before reading, and stdin has no seek."""
    if name != "-":
        yield name
        return
    with STDIN.open("rb") as given:
        begin = given.read(max(map(len, PACKED)))
        suffix = next((suffix for first, suffix in PACKED.items() if begin.startswith(first)), ".txt")
        with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
            copy.write(begin)
            shutil.copyfileobj(given, copy)
            copy.flush()
            yield copy.name


def _in_terms_of_options(problem: str, path: str, name: str) -> str:
    for advice, option in ADVICE:
        problem = advice.sub(option, problem)
    return problem.replace(path, "-") if name == "-" else problem


def _read(data: Data, source: Source, must_have_ids: bool) -> Rows:
    problems = Problems()
    if data.columns.id is not None and not _has_column(data, source, data.columns.id):
        if must_have_ids and not resolve_path(source.name).is_dir():
            raise InputError(f"--columns: id: {source.name} has no column {data.columns.id!r}")
        data = _changed(data, {"id": None})
    corpus = READINGS[data.task].read(data, [source], [source.name], problems, keep_empty=True)
    problems.raise_if_any()
    return corpus.parts["transfer"]


def _has_column(data: Data, source: Source, column: Column) -> bool:
    if source.format in ("lines", "conll") or resolve_path(source.name).is_dir():
        return False
    first = next(iter(read_records(source, data.header, data.columns.text, Problems())), None)
    return first is not None and column in first[1]


def _written_so(data: Data, keys: Mapping[str, str | None]) -> Data:
    """The section with the values that options of `predict` give; None leaves a key as it is."""
    values = {key: value for key, value in keys.items() if value is not None}
    try:
        Data.model_validate({"train": ["-"], **values})
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(f"--{problem['loc'][0]}: {problem['msg'].removeprefix('Value error, ')}") from None
    return data.model_copy(update=values)


# --- columns -----------------------------------------------------------------------------------------


def _with_columns(data: Data, words: Sequence[str]) -> Data:
    """The section with its columns replaced by those of `--columns`.

    Columns given by name mean that the file has a header; columns given by number mean that it has none.
    """
    found: dict[str, Column | None] = {**_roles(words, data)}
    if "text_b" in found and data.columns.text_b is None:
        raise InputError("--columns: text_b: is only for task 'pairs'")
    if "privileged" in found and data.columns.privileged is None:
        raise InputError("--columns: privileged: is only for a model that reads annotations, and is given them")
    if not found:
        return data
    kinds = {isinstance(column, int) for column in found.values()}
    if len(kinds) > 1:
        raise InputError("--columns: give names (of a header) or numbers (where there is none), not both")
    numbered = kinds.pop()
    if data.columns.id is not None and isinstance(data.columns.id, int) != numbered:
        found.setdefault("id", None)
    return _changed(data, found).model_copy(update={"header": not numbered})


def _roles(words: Sequence[str], data: Data) -> dict[str, Column]:
    """Columns by role, from words such as `text=title,id=key`; for tasks that generate text, `source` is `text`."""
    found: dict[str, Column] = {}
    also = {"source": "text"} if rules_of(data.task).writes else {}
    for word in (part for words_ in words for part in words_.split(",")):
        role, equals, column = word.partition("=")
        role = also.get(role, role)
        if role not in ROLES or not equals or not column:
            hint = "" if role in ROLES else suggest(role, ROLES)
            raise InputError(f"--columns: {word!r} is not of the form text=COLUMN{hint} (allowed: {', '.join(ROLES)})")
        found[role] = int(column) if column.isascii() and column.isdigit() else column
    return found


def _changed(data: Data, columns: dict[str, Any]) -> Data:
    return data.model_copy(update={"columns": data.columns.model_copy(update=columns)})


def _header_of(source: Source, data: Data) -> str:
    """The first row of a table whose columns are read by number, if it looks like a header; else an empty text.

    All cells of a header are names that occur nowhere else in their column, and some other row has a cell that is not a
    name. With a single column, a header cannot be told from a text of one word.
    """
    records = (record for _, record in read_records(source, False, data.columns.text, Problems()))
    rows = [list(record.values()) for record in islice(records, COMPARED_ROWS)]
    if len(rows) < 2 or len(rows[0]) < 2 or not all(HEADER_CELL.fullmatch(cell) for cell in rows[0]):
        return ""
    for name, column in zip(rows[0], list(zip(*rows[1:], strict=True)), strict=True):
        if name in column:
            return ""
    if all(all(HEADER_CELL.fullmatch(cell) for cell in row) for row in rows[1:]):
        return ""
    return shown(map(repr, rows[0]))


def _check_not_ids(texts: Sequence[str], source: Source, data: Data) -> None:
    """Raise InputError if the column that is read as text holds whole numbers only, and another one has none.

    Such a file has ids where the recipe's files have texts, and nothing in the answers would show the mistake.
    """
    if not all(text.strip().isdigit() for text in texts[:COMPARED_ROWS]):
        return
    records = (record for _, record in read_records(source, False, data.columns.text, Problems()))
    rows = list(islice(records, COMPARED_ROWS))
    words = [column for column in rows[0] if not any(str(row[column]).strip().isdigit() for row in rows)]
    if words:
        raise InputError(
            f"data.transfer: {source.name}: column {data.columns.text}, which the recipe reads as text, holds whole numbers "
            f"alone: give --columns text={words[0]} (or text={data.columns.text}, if those are the texts)"
        )


# --- formats -----------------------------------------------------------------------------------------


def _format(data: Data, path: str, name: str) -> str:
    """The format by the file's suffix; for .txt or no suffix by the first line, if the recipe's own format fits it."""
    place = resolve_path(path)
    if suffix_of(place) not in ("", ".txt") or not place.is_file():
        return _format_by_name(data, path)
    first = first_line(place, data.encoding)
    if not first:
        raise InputError(f"data.transfer: {path}: {'nothing was read' if name == '-' else 'the file is empty'}")
    own = _own_format(data)
    if _is_object(first) or ARRAY.match(first):
        found = "jsonl"  # for an array, the reader explains how to convert it to lines
    elif own in TABLES and _is_row(first, Source("transfer", path, own, delimiter=data.delimiter), data):
        found = own
    else:
        found = _format_by_name(data, path) if own == "conll" else "lines"
    if name == "-" and found != own:
        warn(f"--input: - is read as {'plain lines' if found == 'lines' else found}; --format says otherwise")
    return found


def _format_by_name(data: Data, path: str) -> str:
    alone = {"train": [], "valid": [], "test": [], "transfer": [path]}
    return find_sources(data.model_copy(update=alone))[0].format


def _own_format(data: Data) -> str:
    """The format of the recipe's training files (of the first one)."""
    try:
        return find_sources(data.model_copy(update={"valid": [], "test": [], "transfer": []}))[0].format
    except InputError:
        # The files may be gone since the model was trained; a model folder only has their format.
        return "lines" if data.format == "auto" else data.format


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _is_row(line: str, source: Source, data: Data) -> bool:
    """Whether the first line of a file is one of a table with the recipe's columns.

    Since tabs are rare in text, a line with a tab is always one of a table; a later check reports missing columns.
    """
    cells = [cell.strip(' "') for cell in line.split(source.separator)]
    columns = [column for column in (data.columns.text, data.columns.text_b) if column is not None]
    if source.separator == "\t" and len(cells) > 1:
        return True
    return all(column in cells if isinstance(column, str) else column < len(cells) for column in columns)


# --- the prepared test rows --------------------------------------------------------------------------


def prepared_texts(part: EncodedSplit, types: Sequence[str] = ()) -> Texts:
    """The texts of prepared rows, which are normalised; for tagging, whole documents as in the user's files.

    Args:
        types: the types of annotations, if these are to be included.
    """
    rows = part.rows()
    if part.documents is not None:
        return _documents(rows, types)
    ids = _ids(rows["key"], rows["file"], rows["line"])
    return Texts(
        ids, list(rows["text"]), list(rows["text_b"]) if "text_b" in rows.column_names else [], list(rows["line"])
    )


def _documents(pieces: Dataset, types: Sequence[str]) -> Texts:
    """Documents, joined from their pieces."""
    texts: list[str] = []
    tags: list[list[int]] = []
    places: list[tuple[str, int, int]] = []
    columns = (pieces[name] for name in ("text", "start", "key", "file", "line"))
    beside = iter(pieces["privileged"]) if types else repeat([])
    for (text, start, *place), own in zip(zip(*columns, strict=True), beside, strict=False):
        if start:
            texts[-1] += text
            tags[-1] += own
        else:
            texts.append(text)
            tags.append(list(own))
            places.append(tuple(place))
    keys, files, lines = zip(*places, strict=True)
    found = [[Span(start, end, types[kind]) for kind, start, end in spans(np.array(own))] for own in tags if types]
    return Texts(_ids(keys, files, lines), texts, [], list(lines), found)


def _ids(keys: Any, files: Any, lines: Any) -> list[str | int]:
    """The ids of prepared rows, see `_id`."""
    return [
        _id(position, key, f"{file}:{line}")
        for position, (key, file, line) in enumerate(zip(keys, files, lines, strict=True))
    ]


def _id(position: int, key: str, place: str) -> str | int:
    """The user's id, as int if it is a whole number; the position from 0 of a row whose key is its place, FILE:LINE."""
    if key == place:
        return position
    return int(key) if key.isascii() and key.isdigit() and str(int(key)) == key else key


class Ids(Values[str | int]):
    """The ids of rows that were read, see `_id`."""

    def __init__(self, keys: KeyColumn) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def _get(self, row: int) -> str | int:
        return _id(row, self._keys[row], f"{self._keys.file[row]}:{self._keys.line[row]}")

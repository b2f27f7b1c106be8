"""The file formats: each reader yields (line, record), a record being a mapping from column to value.

Columns are names (JSON keys, header names, features) or numbers from 0 (tables without a header). What is wrong
with a line becomes a problem that names file and line, and the line is left out.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dtrain.data.files import HUB, Source, numbered_lines
from dtrain.data.problems import Problems, shown
from dtrain.errors import InputError, suggest

FIELD_CHARACTERS = 1 << 30  # of a CSV file; the csv module's own bound, 131,072, is less than a long document

if TYPE_CHECKING:
    from datasets import Dataset

Record = Mapping[str | int, Any]
Records = Iterator[tuple[int, Record]]


def read_records(source: Source, header: bool, text: str | int, problems: Problems) -> Records:
    """All records of a source. `text` names the column that plain lines go into."""
    if source.format == "jsonl":
        return _json_lines(source, problems)
    if source.format in ("tsv", "csv"):
        return _table(source, header, problems)
    if source.format == "lines":
        return ((number, {text: line}) for number, line in numbered_lines(source.path, source.name, problems))
    return _dataset(source)


def _json_lines(source: Source, problems: Problems) -> Records:
    for number, line in numbered_lines(source.path, source.name, problems):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            hint = "; one object a line is read, not one array" if number == 1 and line.lstrip()[0] == "[" else ""
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            problems.add(f"{source.name}:{number}: not valid JSON: {message}{column}{hint}")
            continue
        except RecursionError:
            problems.add(f"{source.name}:{number}: not usable JSON: nested too deeply")
            continue
        if "\\u" in line and not _is_text(record):
            problems.add(f"{source.name}:{number}: holds half of a surrogate pair (an escape from \\ud800 to \\udfff)")
        elif isinstance(record, dict):
            yield number, record
        else:
            hint = "; one object a line is read, not one array" if number == 1 and isinstance(record, list) else ""
            problems.add(f"{source.name}:{number}: must be a JSON object, found {kind_of(record)}{hint}")


def _is_text(record: Any) -> bool:
    """Whether every character is one; JSON's escapes can name halves, which no file can hold."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _table(source: Source, header: bool, problems: Problems) -> Records:
    split = _tab_rows if source.format == "tsv" else csv_rows
    columns: list[Any] | None = None
    first = 1
    for number, row in split(source, problems):
        if columns is None:
            first = number
            if header:
                columns = [name.strip() for name in row]
                twice = sorted({name for name in columns if columns.count(name) > 1})
                if twice:
                    # Every later row would repeat the mistake.
                    problems.add(f"{source.name}:{number}: the header names column {twice[0]!r} twice")
                    return
                continue
            columns = list(range(len(row)))
        if len(row) != len(columns):
            like = "the header" if header else f"line {first}"
            problems.add(f"{source.name}:{number}: {len(row)} column(s), but {like} has {len(columns)}")
            continue
        yield number, dict(zip(columns, row, strict=True))


def _tab_rows(source: Source, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Tab-separated rows: no quoting, as sentence corpora are written; empty lines are none."""
    for number, line in numbered_lines(source.path, source.name, problems):
        if line:
            yield number, line.split("\t")


def csv_rows(source: Source, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Comma-separated rows with quoting; a row that spans lines is known by its first."""
    start = 0

    def lines() -> Iterator[str]:
        nonlocal start
        for number, line in numbered_lines(source.path, source.name, problems):
            start = start or number
            yield line + "\n"

    csv.field_size_limit(FIELD_CHARACTERS)
    reader = csv.reader(lines(), strict=True)
    while True:
        start = 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add(f"{source.name}:{start}: not valid CSV: {error}")
            continue
        if row:
            yield start, row


def _dataset(source: Source) -> Records:
    """Rows of a `datasets` folder or hub data set, numbered from 1; class labels by their names."""
    from datasets import ClassLabel

    dataset = _load_hub(source) if source.format == "hub" else _load_folder(source)
    names: dict[str, Callable[[int], str]] = {
        column: feature.int2str for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)
    }
    for number, row in enumerate(dataset, 1):
        record: dict[str | int, Any] = dict(row)
        for column, name_of in names.items():
            value = record[column]
            # Unlabelled test sets of the hub carry -1.
            record[column] = None if value is None or value < 0 else name_of(value)
        yield number, record


def _load_folder(source: Source) -> Dataset:
    from datasets import load_from_disk

    path = source.path
    if (path / "dataset_dict.json").is_file():
        parts = [folder.name for folder in sorted(path.iterdir()) if folder.is_dir()]
        raise InputError(f"{source.key}: {source.name}: holds several parts; name one of them ({shown(parts)})")
    if not (path / "dataset_info.json").is_file() or not (path / "state.json").is_file():
        raise InputError(f"{source.key}: {source.name}: is no folder written by datasets' save_to_disk")
    try:
        return load_from_disk(path)
    except Exception as error:
        # Whatever a damaged file makes Arrow or datasets raise: it is the input that is bad.
        raise InputError(f"{source.key}: {source.name}: cannot be read: {_first_line(error)}") from error


def _load_hub(source: Source) -> Dataset:
    """`hub:name[:config]/split`, for example hub:clue/clue:tnews/train."""
    from datasets import load_dataset

    name, slash, split = source.name.removeprefix(HUB).rpartition("/")
    name, _, config = name.partition(":")
    if not slash or not name or not split:
        raise InputError(f"{source.key}: {source.name}: must have the form hub:name[:config]/split")
    try:
        return load_dataset(name, config or None, split=split)
    except Exception as error:
        # Offline, a wrong name, a wrong part: the hub's own words say which.
        raise InputError(f"{source.key}: {source.name}: cannot be loaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def kind_of(value: Any) -> str:
    """What a JSON value is, in a reader's words."""
    if value is None:
        return "nothing (null)"
    names = {bool: "true/false", dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), f"the number {value!r}")


def missing_column(column: str | int, record: Record) -> str:
    """The message for a record without `column`."""
    if isinstance(column, int):
        return f"has no column {column} ({len(record)} columns, counted from 0)"
    allowed = [str(key) for key in record]
    return f"has no {column!r}{suggest(column, allowed, 0.5)} (found: {shown(allowed) or 'none'})"

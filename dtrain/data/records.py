"""The file formats: each reader yields (line, record), where a record is a mapping from columns to values.

Columns are names (JSON keys, header names, features) or numbers from 0 (tables without a header). A malformed line is
skipped, and reported as a problem with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrain.data.files import TABLES, Source
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems, RowError, shown
from dtrain.data.tables import EXCEL, MEND, SEPARATORS, SpanningRows, add_misread, mended_row, table_rows
from dtrain.errors import counted, suggest

Record = Mapping[str | int, Any]
Records = Iterator[tuple[int, Record]]


class Doubled(list[Any]):
    """The different values that a JSON object has for one key; no column accepts such a list as its value."""


@dataclass(frozen=True)
class Wanted:
    """The columns that are read from records; for tables, missing ones are reported once instead of in every row.

    Attributes:
        needed: columns that every row must have.
        label: the column of the label.
        labels: the labels that the recipe names.
    """

    needed: Sequence[str | int] = ()
    label: str | int | None = None
    labels: Sequence[str] = ()


def read_records(
    source: Source, header: bool, text: str | int, problems: Problems, wanted: Wanted | None = None
) -> Records:
    """All records of a source, each with its line.

    Args:
        header: whether the first row of a table names its columns.
        text: the column under which plain lines are yielded.
        problems: collects what is wrong with lines.
    """
    if source.format == "jsonl":
        return _json_lines(source, problems)
    if source.format in TABLES:
        return _table(source, header, problems, wanted or Wanted())
    if source.format == "lines":
        lines = numbered_lines(source.path, source.name, problems, source.encoding, source.encoding_key)
        return ((number, {text: line}) for number, line in lines)
    # `datasets` takes a second to import, so it is imported only for files that need it.
    from dtrain.data.arrow import arrow_records

    if wanted is None:
        return arrow_records(source)
    return arrow_records(source, [*wanted.needed, *[wanted.label] * (source.part != "transfer")])


# --- JSON ------------------------------------------------------------------------------------------


def _json_lines(source: Source, problems: Problems) -> Records:
    first = True
    for number, line in numbered_lines(source.path, source.name, problems, source.encoding, source.encoding_key):
        if not line.strip():
            continue
        try:
            record = _json_object(line)
        except RowError as error:
            if first and (laid_out := _layout(line)):
                problems.add(f"{source.name}:{number}: {error}; {laid_out}")
                return  # every line that follows would repeat the mistake
            problems.add_row(source.name, number, error)
        else:
            yield number, record
        first = False


def _layout(line: str) -> str:
    """A hint for a file that holds one array, or objects over several lines, told by its first line; else ""."""
    begins = line.strip()
    if begins[0] != "[" and begins != "{":
        return ""
    found, query = ("one array", ".[]") if begins[0] == "[" else ("objects over several lines", ".")
    return f"the file seems to hold {found}, but each line must be one object; convert it by: jq -c '{query}' FILE > FILE.jsonl"


def _json_object(line: str) -> Record:
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise RowError("not valid JSON", f": {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise RowError("not usable JSON: nested too deeply") from None
    except ValueError as error:
        raise RowError("not valid JSON", f": {error}") from None
    if "\\u" in line and not _is_text(record):
        raise RowError("holds half of a surrogate pair (an escape from \\ud800 to \\udfff)")
    if not isinstance(record, dict):
        raise RowError("must be a JSON object", f", found {kind_of(record)}")
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; a key that occurs with different values has them as `Doubled`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name in found:
            values = [value for key, value in pairs if key == name]
            if any(value != values[0] for value in values):
                found[name] = Doubled(values)
    return found


def _is_text(record: Any) -> bool:
    """Whether a record can be encoded: JSON's escapes can name half of a surrogate pair, which no file can hold."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- tables ----------------------------------------------------------------------------------------


def _table(source: Source, header: bool, problems: Problems, wanted: Wanted) -> Records:
    columns: list[Any] = []  # from the first row
    first_line = 0
    spanning: SpanningRows | None = None
    remedy = "; if the file has no header, set data.header: false and data.columns to numbers" if header else ""
    for row in table_rows(source, problems):
        line = source.separator.join(row.columns)
        if spanning is None:
            if row.line == 1 and (excel := EXCEL.fullmatch(line)):
                name = SEPARATORS.get(excel[1], excel[1])
                remedy = "" if excel[1] == source.separator else f", and set data.delimiter: {name!r}"
                problems.add(f"{source.name}:1: is a line for Excel alone ({line}): delete it{remedy}")
                return
            first_line = row.line
            columns = [name.strip() for name in row.columns] if header else list(range(len(row.columns)))
            twice = sorted(
                {name for name in columns if name != "" and columns.count(name) > 1}
            )  # "": a spreadsheet's margin
            missing = [column for column in wanted.needed if column not in columns]
            if twice or missing:
                # Every later row would repeat the mistake.
                what = (
                    f"the header names column {twice[0]!r} twice"
                    if twice
                    else str(missing_columns(missing, columns, ""))
                )
                add_misread(problems, source, row.line, what, line, remedy, "header")
                return
            place = columns.index(wanted.label) if wanted.label in columns else None
            spanning = SpanningRows(source, len(columns), place, wanted.labels)
            if header:
                continue
        if len(row.columns) != len(columns):
            like = "the header" if header else f"line {first_line}"
            found = f"{len(row.columns)} column(s), but {like} has {len(columns)}"
            if row.lines:
                found += f"; a quotation mark opens in this row, which continues over {len(row.lines) - 1} more line(s); {MEND}"
                add_misread(problems, source, row.line, found, line, kind="quotes")
            else:
                kind = "columns" if len(row.columns) > len(columns) else "too few columns"
                add_misread(problems, source, row.line, found, line, f"; {mended_row(source, row, len(columns))}", kind)
            continue
        spanning.see(row)
        yield row.line, dict(zip(columns, row.columns, strict=True))
    if spanning is not None:
        spanning.tell(problems)


def kind_of(value: Any) -> str:
    """The kind of a JSON value, in words for a message."""
    if value is None:
        return "nothing (null)"
    names = {
        bool: "true/false",
        dict: "an object",
        list: "a list",
        str: "a text",
        Doubled: "different values: the key is given twice in one object",
    }
    return names.get(type(value), f"the number {value!r}")


def missing_columns(
    names: Sequence[str | int], found: Collection[str | int], remedy: str = "; set data.columns to its names"
) -> RowError:
    """The problem of a record or table with the columns `found` that lacks the columns `names`."""
    if any(isinstance(name, int) for name in names):
        what = f"has no column {' and no column '.join(map(str, names))}"
        return RowError(what, f" ({counted(len(found), 'column')}, counted from 0)")
    words = [str(column) for column in found]
    near = suggest(str(names[0]), words, 0.5) if len(names) == 1 else ""
    return RowError(f"has no {' and no '.join(map(repr, names))}", f"{near} (found: {shown(words) or 'none'}){remedy}")

"""Tables of text (TSV, CSV): rows of columns, with or without quoting, and the detection of stray quotes."""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Collection, Iterator
from typing import NamedTuple

from dtrain.data.files import Source
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems, shortened

FIELD_CHARACTERS = 1 << 30  # limit of a column; the default of the csv module, 131,072, is less than a long document
MOST_LABELS = 4096  # different labels of a table that are kept as texts
SEPARATORS = {"\t": "tab", ";": ";", "|": "|", ",": ","}  # with the words that a recipe uses for them


_SPACED_QUOTE = re.compile(r'[ \t]+"')
EXCEL = re.compile(r'"?sep=(.)"?')  # a first line that tells Excel what separates the columns
MEND = "correct the quotation marks, or set data.quoting: none if they are part of the text"


class TableRow(NamedTuple):
    """One row, which begins at `line`; `lines` are its lines if it spans several, else empty."""

    line: int
    columns: list[str]
    lines: list[str]


def table_rows(source: Source, problems: Problems) -> Iterator[TableRow]:
    """The rows of a table in order, with the header; empty lines are skipped."""
    return _quoted_rows(source, problems) if source.quoted else _plain_rows(source, problems)


def _plain_rows(source: Source, problems: Problems) -> Iterator[TableRow]:
    """Rows of a table without quoting, the usual form of sentence corpora."""
    rows = quoted = first = 0
    for number, line in numbered_lines(source.path, source.name, problems, source.encoding, source.encoding_key):
        if not line:
            continue
        rows += 1
        columns = line.split(source.separator)
        if '""' in line and source.quoting == "auto" and any(map(_is_quoted, columns)):
            quoted, first = quoted + 1, first or number
        yield TableRow(number, columns, [])
    if quoted > 0.01 * rows:  # about one sentence in a thousand really is a quotation
        problems.remark(
            f"{source.name}:{first}: {quoted:,} row(s) hold a column in quotes with doubled quotes inside, as spreadsheets "
            "write them; they are read as they stand (data.quoting: quotes takes the quotes off)"
        )


def _is_quoted(column: str) -> bool:
    inner = column[1:-1]
    return len(column) > 2 and column[0] == column[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _quoted_rows(source: Source, problems: Problems) -> Iterator[TableRow]:
    """Rows with quotes around columns that contain separators, line ends or (doubled) quotes, as in RFC 4180."""
    start = 0
    lines: list[str] = []

    def read_lines() -> Iterator[str]:
        nonlocal start
        for number, line in numbered_lines(source.path, source.name, problems, source.encoding, source.encoding_key):
            start = start or number
            lines.append(line)
            yield line + "\n"

    csv.field_size_limit(FIELD_CHARACTERS)
    read = False
    reader = csv.reader(read_lines(), delimiter=source.separator, strict=True)
    while True:
        start = 0
        lines.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = f"not valid CSV: {error}"
            if add_misread(problems, source, start, what, lines[0], f"; {MEND}", "quotes") and not read:
                return  # every later row would repeat the mistake
            continue
        read = True
        if any(_SPACED_QUOTE.match(column) for column in row):
            row = _without_spaces(lines, source.separator) or row
        if row:
            yield TableRow(start, row, list(lines) if len(lines) > 1 else [])


def _without_spaces(lines: list[str], separator: str) -> list[str]:
    """A row read without the spaces before its quotes, which RFC 4180 does not allow; [] if it is invalid even so."""
    try:
        return next(
            csv.reader(iter([line + "\n" for line in lines]), delimiter=separator, strict=True, skipinitialspace=True)
        )
    except csv.Error:
        return []


class SpanningRows:
    """Rows of a quoted table that span several lines: RFC 4180 allows them, but a stray quote causes them, too.

    A remark reports them. If one of their lines looks like a row, with as many columns as the table and the label of
    another row, a stray quote has joined rows, and the file is refused (unless the recipe says `quoting: quotes`).

    Args:
        width: the number of columns of the table.
        label: the position of the label's column; None: there is none, and no file is refused.
        known: labels that the recipe names.
    """

    def __init__(self, source: Source, width: int, label: int | None, known: Collection[str]) -> None:
        self.source, self.width, self.label = source, width, label
        self.known = set(known)
        self.more = array("q")  # hashes of further labels, because the numbers of regression differ from row to row
        self.first = self.count = 0
        self.suspects: list[tuple[int, int, str, str]] = []  # line of the row, line in it, its label, the row's label

    def see(self, row: TableRow) -> None:
        """Record one row, which has `width` columns."""
        own = row.columns[self.label].strip() if self.label is not None else ""
        if not row.lines:
            if self.source.quoted:
                if len(self.known) < MOST_LABELS:
                    self.known.add(own)
                elif own not in self.known:
                    self.more.append(hash(own))
            return
        self.first, self.count = self.first or row.line, self.count + 1
        if self.label is None:
            return
        # The first line holds the columns up to the one that spans lines, the last line those after it.
        broken = [place for place, column in enumerate(row.columns) if "\n" in column]
        first = 0 if self.label >= broken[0] else 1
        lines = row.lines[first : None if self.label <= broken[-1] else -1]
        for offset, line in enumerate(lines, first):
            columns = line.split(self.source.separator)
            if len(columns) == self.width:
                self.suspects.append((row.line, row.line + offset, columns[self.label].strip(' "'), own))

    def tell(self, problems: Problems) -> None:
        """Add the problem or remark about spanning rows, after the whole file was read."""
        name = self.source.name
        more = set(self.more) if self.suspects else set()
        swallowed = [s for s in self.suspects if s[2] and (s[2] in self.known or hash(s[2]) in more or s[2] == s[3])]
        if swallowed and self.source.quoting == "auto":
            begins, line, label, _ = swallowed[0]
            rows = len({suspect[0] for suspect in swallowed})
            problems.add(
                f"{name}:{begins}: a quotation mark opens here and joins several lines into one row, but line {line} looks "
                f"like a row of its own with the label {shortened(label)!r}{f' ({rows:,} such rows)' if rows > 1 else ''}; "
                f"{MEND} (data.quoting: quotes if such rows are right as they are)",
                f"{name}: quotes",
            )
        elif self.count:
            problems.remark(f"{name}:{self.first}: {self.count:,} row(s) span several lines, the first begins here")


def mended_row(source: Source, row: TableRow, width: int) -> str:
    """A hint on how to correct a row with more or fewer columns than the table's `width`."""
    if len(row.columns) < width:
        return "a column is missing, or a text continues on the next line: correct the row, or delete it"
    name = SEPARATORS.get(source.separator, source.separator)
    held = f"a text may hold a {name}" if name == "tab" else f"a text may hold {name!r}"
    instead = "put that text in quotes" if source.quoted else "write a space in its place"
    return f"{held}: {instead}, or delete the row"


def add_misread(
    problems: Problems, source: Source, number: int, what: str, line: str, remedy: str = "", kind: str = "columns"
) -> bool:
    """Add a problem with a row of a table.

    Args:
        number: the row's line in the file.
        what: what is wrong with the row.
        line: the text of the row, in which another separator is looked for.
        remedy: the end of the message, where no other separator is found.
        kind: problems of this file with the same kind are reported as one.

    Returns:
        Whether the columns seem to be separated by another character.
    """
    found = max(SEPARATORS, key=line.count)
    otherwise = found in line and source.separator not in line
    if otherwise:
        remedy = f"; it seems to be separated by {found!r}: set data.delimiter: '{SEPARATORS[found]}'"
        kind = "separator"
    problems.add(f"{source.name}:{number}: {what}{remedy}", f"{source.name}: {kind}")
    return otherwise

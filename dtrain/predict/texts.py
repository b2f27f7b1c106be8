"""What is to be answered: rows of a file or of stdin, or the prepared test rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtrain.data import Part
from dtrain.data.documents import read_documents
from dtrain.data.files import Source, find_sources, resolve_path
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.data.sources import read_rows
from dtrain.errors import InputError
from dtrain.recipe.data import Data

if TYPE_CHECKING:
    from datasets import Dataset

STDIN = "/dev/stdin"


@dataclass(frozen=True)
class Texts:
    """What is to be labelled: an id and a text (or two) a row."""

    ids: list[str | int]
    text: list[str]
    text_b: list[str]  # pairs only, else empty


def read_texts(data: Data, name: str) -> Texts:
    """The rows of a file, read as the recipe's unlabelled files are: labels are neither needed nor looked at.

    A row's id is the user's where the file has the recipe's id column, else its position from 0.

    Raises:
        InputError: naming file and line, or the column.
    """
    columns = data.columns
    alone = {"train": [], "valid": [], "test": [], "transfer": [name]}
    try:
        source = Source("transfer", name, "lines") if name == STDIN else find_sources(data.model_copy(update=alone))[0]
        problems = Problems()
        if columns.id is not None and not _has_column(data, source, columns.id):
            columns = columns.model_copy(update={"id": None})
        data = data.model_copy(update={"columns": columns})
        if data.task == "tagging":
            read, _, _ = read_documents(data, [source], [name], problems, keep_empty=True)
        else:
            read = read_rows(data, [source], [name], problems)
        problems.raise_if_any()
    except InputError as error:
        told = [p.replace("data.transfer: ", "--input: ").replace(STDIN, "-") for p in error.problems]
        raise InputError(told) from None
    rows = read["transfer"]
    return Texts(_ids(rows.key, list(rows.file), list(rows.line)), rows.text, rows.text_b)


def _has_column(data: Data, source: Source, column: str | int) -> bool:
    if source.format in ("lines", "conll") or resolve_path(source.name).is_dir():
        return False
    first = next(iter(read_records(source, data.header, data.columns.text, Problems())), None)
    return first is not None and column in first[1]


def prepared_texts(part: Part) -> Texts:
    """The test rows as they were prepared (normalised); for tagging, documents as the user has them."""
    rows = part.rows()
    if part.documents is not None:
        return _documents(rows)
    ids = _ids(rows["key"], rows["file"], rows["line"])
    return Texts(ids, list(rows["text"]), list(rows["text_b"]) if "text_b" in rows.column_names else [])


def _documents(pieces: Dataset) -> Texts:
    """The pieces of each document joined."""
    texts: list[str] = []
    places: list[tuple[str, int, int]] = []
    columns = (pieces[name] for name in ("text", "start", "key", "file", "line"))
    for text, start, *place in zip(*columns, strict=True):
        if start:
            texts[-1] += text
        else:
            texts.append(text)
            places.append(tuple(place))
    return Texts(_ids(*zip(*places, strict=True)), texts, [])


def _ids(keys: Any, files: Any, lines: Any) -> list[str | int]:
    """The user's ids (whole numbers as such), or positions where the key is only the place in a file."""
    ids: list[str | int] = []
    for position, (key, file, line) in enumerate(zip(keys, files, lines, strict=True)):
        if key == f"{file}:{line}":
            ids.append(position)
        else:
            ids.append(int(key) if key.isascii() and key.isdigit() and str(int(key)) == key else key)
    return ids

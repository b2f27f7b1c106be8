"""The label map, for tagging that of entity types: given in order, or found in the training rows."""

from __future__ import annotations

import json
import re

import numpy as np

from dtrain.data.files import existing_file
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems, shortened, shown
from dtrain.data.sources import Rows
from dtrain.errors import InputError, suggest
from dtrain.recipe.data import Data


def label_map(data: Data, parts: dict[str, Rows], problems: Problems) -> list[str]:
    """Labels in the order of their numbers.

    Where `data.labels` are names, and the rows hold numbers that count them from 0, the names take the numbers' places
    in the rows.

    Raises InputError for a label file that is wrong, or where fewer than two labels are found.
    """
    if data.labels is not None:
        given = data.labels
        labels = _read_label_file(given, data.encoding, least=2) if isinstance(given, str) else list(given)
        _name_numbers(labels, parts, problems)
        return labels
    found = {label for label in parts["train"].label if label is not None}
    if len(found) < 2:
        raise InputError(f"data.train: only one label ({shown(map(repr, found))}); classification needs at least 2")
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in found):
        return sorted(found, key=lambda label: (int(label), label))
    return sorted(found)


def _name_numbers(labels: list[str], parts: dict[str, Rows], problems: Problems) -> None:
    """Put names in the place of numbers, where no row has a name of `labels` and every row a number of one."""
    found = {label for rows in parts.values() for label in rows.label if label is not None}
    names = {str(number): label for number, label in enumerate(labels)}
    if not found or not found <= set(names) or found & set(labels):
        return
    for rows in parts.values():
        rows.label = [None if label is None else names[label] for label in rows.label]
    problems.remark(
        f"data.labels: names the numbers of the rows: 0 is {labels[0]!r}, {len(labels) - 1} is {labels[-1]!r}"
    )


def label_numbers(data: Data, parts: dict[str, Rows], labels: list[str], files: list[str]) -> dict[str, np.ndarray]:
    """Every part's labels as numbers, int64 [N], -1 for none.

    Raises InputError for labels outside the map, and for a test part that is labelled in places only.
    """
    problems = Problems()
    numbers: dict[str | None, int] = {label: number for number, label in enumerate(labels)}
    columns = {}
    for part, rows in parts.items():
        columns[part] = np.array([numbers.get(label, -1) for label in rows.label], dtype=np.int64)
        check_all_or_none(part, np.array([label is None for label in rows.label]), rows, files, problems)
        unknown = [i for i in np.flatnonzero(columns[part] < 0).tolist() if rows.label[i] is not None]
        if unknown:
            _add_unknown(data, rows, unknown, labels, files, problems)
    problems.raise_if_any()
    return columns


def _add_unknown(
    data: Data, rows: Rows, unknown: list[int], labels: list[str], files: list[str], problems: Problems
) -> None:
    """One problem for all rows of a part whose label is none of `labels`."""
    first, label = unknown[0], str(rows.label[unknown[0]])
    why, remedy = outside(data)
    others = list(dict.fromkeys(repr(rows.label[i]) for i in unknown if rows.label[i] != label))
    more = f"; {len(unknown) - 1:,} more row(s) have" if len(unknown) > 1 else ""
    more += f" this label or {shown(others, 5)}" if others else " this label" if more else ""
    header = "; if the file has a header, set data.header: true" if not data.header and rows.line[first] == 1 else ""
    place = f"{files[rows.file[first]]}:{rows.line[first]}: label {shortened(label)!r} {why}"
    problems.add(f"{place}{suggest(label, labels, 0.5)} (allowed: {shown(labels)}){more}{remedy}{header}")


def outside(data: Data) -> tuple[str, str]:
    """Why a label or type is none of those allowed, and what to do about it."""
    if data.labels is not None:
        return "is not in data.labels", ""
    return "is never seen in training", "; where it is meant, list every one in data.labels"


def entity_types(data: Data, train: Rows) -> list[str]:
    """Entity types in the order of their numbers.

    Raises InputError for a label file that is wrong, or where training holds no entity.
    """
    if isinstance(data.labels, list):
        return list(data.labels)
    if isinstance(data.labels, str):
        return _read_label_file(data.labels, data.encoding, least=1)
    found = {span.type for spans in train.spans for span in spans or ()}
    if not found:
        raise InputError("data.train: holds no entity; tagging needs at least one")
    return sorted(found)


def check_spans(data: Data, parts: dict[str, Rows], types: list[str], files: list[str]) -> dict[str, np.ndarray]:
    """For every part whether its documents have spans: int64 [N], 0 or -1 for not.

    Raises InputError for types outside the map, for an entity longer than the pieces that documents are cut
    into, and for a test part that has spans in places only.
    """
    problems = Problems()
    known = set(types)
    most = data.max_length - 2
    columns = {}
    for part, rows in parts.items():
        columns[part] = np.array([-1 if spans is None else 0 for spans in rows.spans], dtype=np.int64)
        check_all_or_none(part, columns[part] < 0, rows, files, problems)
        for i, spans in enumerate(rows.spans):
            for span in spans or ():
                place = f"{files[rows.file[i]]}:{rows.line[i]}: entity {_short(rows.text[i][span.start : span.end])}"
                if span.type not in known:
                    why, remedy = outside(data)
                    found = f"type {span.type!r} {why}{suggest(span.type, types, 0.5)}"
                    problems.add(f"{place}: {found} (allowed: {shown(types)}){remedy}", f"{part}: type {span.type}")
                elif span.end - span.start > most:
                    found = f"{span.end - span.start} characters, and data.max_length leaves {most} a piece"
                    problems.add(f"{place}: has {found}; raise data.max_length, or mend the entity", "too long")
    problems.raise_if_any()
    return columns


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else f"{text[:30]}...")


def check_all_or_none(part: str, bare: np.ndarray, rows: Rows, files: list[str], problems: Problems) -> None:
    """A test part is labelled, or it is not: a score of some of its rows would pass for that of all."""
    if part == "test" and bare.any() and not bare.all():
        first = int(np.flatnonzero(bare)[0])
        place = f"{files[rows.file[first]]}:{rows.line[first]}"
        problems.add(f"{place}: has no label, but other test rows have one; label all of them, or none")


def _read_label_file(name: str, encoding: str, least: int) -> list[str]:
    """One label a line, or JSON objects with a "label" (as CLUE's labels.json)."""
    problems = Problems()
    seen: dict[str, int] = {}
    for number, line in numbered_lines(existing_file(name, "data.labels"), name, problems, encoding):
        if not line.strip():
            continue
        try:
            label = _json_label(line) if line.lstrip().startswith("{") else line.strip()
        except ValueError as error:
            problems.add(f"{name}:{number}: {error}")
            continue
        if label in seen:
            problems.add(f"{name}:{number}: label {label!r} is already in line {seen[label]}")
        seen.setdefault(label, number)
    problems.raise_if_any()
    if len(seen) < least:
        raise InputError(f"data.labels: {name}: holds {len(seen)} label(s); at least {least} needed")
    return list(seen)


def _json_label(line: str) -> str:
    try:
        label = json.loads(line)["label"]
    except (json.JSONDecodeError, KeyError, RecursionError):
        raise ValueError('must be a label, or a JSON object with a "label"') from None
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise ValueError(f'"label" must be a text or a whole number, found {label!r}')
    return str(label).strip()

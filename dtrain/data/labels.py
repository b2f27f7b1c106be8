"""The label map: given in order, or found in the training rows."""

from __future__ import annotations

import json
import re

import numpy as np

from dtrain.data.files import existing_file, numbered_lines
from dtrain.data.problems import Problems, shown, suggestion
from dtrain.data.sources import Rows
from dtrain.errors import InputError
from dtrain.recipe.schema import Data


def label_map(data: Data, train: Rows) -> list[str]:
    """Labels in the order of their numbers.

    Raises InputError for a label file that is wrong, or where fewer than two labels are found.
    """
    if isinstance(data.labels, list):
        return list(data.labels)
    if isinstance(data.labels, str):
        return _read_label_file(data.labels)
    found = {label for label in train.label if label is not None}
    if len(found) < 2:
        raise InputError(f"data.train: only one label ({shown(map(repr, found))}); classification needs at least 2")
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in found):
        return sorted(found, key=lambda label: (int(label), label))
    return sorted(found)


def label_numbers(data: Data, parts: dict[str, Rows], labels: list[str], files: list[str]) -> dict[str, np.ndarray]:
    """Every part's labels as numbers, int64 [N], -1 for none.

    Raises InputError for labels outside the map, and for a test part that is labelled in places only.
    """
    problems = Problems()
    numbers: dict[str | None, int] = {label: number for number, label in enumerate(labels)}
    given = data.labels is not None
    columns = {}
    for part, rows in parts.items():
        columns[part] = np.array([numbers.get(label, -1) for label in rows.label], dtype=np.int64)
        bare = [i for i in np.flatnonzero(columns[part] < 0) if rows.label[i] is None]
        if part == "test" and 0 < len(bare) < len(rows):
            place = f"{files[rows.file[bare[0]]]}:{rows.line[bare[0]]}"
            problems.add(f"{place}: has no label, but other test rows have one; label all of them, or none")
        for i in np.flatnonzero(columns[part] < 0):
            label = rows.label[i]
            if label is None:
                continue
            why = "is not in data.labels" if given else "is never seen in training"
            place = f"{files[rows.file[i]]}:{rows.line[i]}"
            problems.add(f"{place}: label {label!r} {why}{suggestion(label, labels)} (allowed: {shown(labels)})")
    problems.raise_if_any()
    return columns


def _read_label_file(name: str) -> list[str]:
    """One label a line, or JSON objects with a "label" (as CLUE's labels.json)."""
    problems = Problems()
    seen: dict[str, int] = {}
    for number, line in numbered_lines(existing_file(name, "data.labels"), name, problems):
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
    if len(seen) < 2:
        raise InputError(f"data.labels: {name}: holds {len(seen)} label(s); classification needs at least 2")
    return list(seen)


def _json_label(line: str) -> str:
    try:
        label = json.loads(line)["label"]
    except (json.JSONDecodeError, KeyError, RecursionError):
        raise ValueError('must be a label, or a JSON object with a "label"') from None
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise ValueError(f'"label" must be a text or a whole number, found {label!r}')
    return str(label).strip()

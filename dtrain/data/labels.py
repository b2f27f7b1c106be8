"""Labels (for tagging, entity types): the file that lists them, their order, and messages about unknown ones."""

from __future__ import annotations

import json
import re

import numpy as np

from dtrain.data.files import existing_file
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems
from dtrain.data.sources import Rows
from dtrain.errors import InputError
from dtrain.recipe.data import Data


def outside(data: Data) -> tuple[str, str]:
    """Why a label or type is not allowed, and what to do about it; both are parts of a message."""
    if data.labels is not None:
        return "is not in data.labels", ""
    return "does not occur in training", "; if it is right, list all of them in data.labels"


def sorted_labels(found: set[str]) -> list[str]:
    """Labels in the order of their numbers: sorted by value where all are whole numbers, else alphabetically."""
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in found):
        return sorted(found, key=lambda label: (int(label), label))
    return sorted(found)


def check_all_or_none(
    part: str, bare: np.ndarray, rows: Rows, files: list[str], problems: Problems, what: str = "label"
) -> None:
    """Add a problem where some test rows have a label and others have none.

    A score over some of the rows would be mistaken for the score over all of them.

    Args:
        bare: whether a row has no label, bool [N].
        files: names of the files that `rows.file` counts in.
        what: the word for a label in the message.
    """
    if part == "test" and bare.any() and not bare.all():
        first = int(np.flatnonzero(bare)[0])
        place = f"{files[rows.file[first]]}:{rows.line[first]}"
        problems.add(f"{place}: has no {what}, but other test rows have one; label all of them, or none")


def read_label_file(name: str, encoding: str, least: int) -> list[str]:
    """Labels from a file with one label per line, or JSON objects with a "label" (as CLUE's labels.json).

    Raises InputError for labels that are malformed or repeated, with file and line, and for fewer than `least` labels.
    """
    problems = Problems()
    seen: dict[str, int] = {}
    for number, line in numbered_lines(existing_file(name, "data.labels"), name, problems, encoding, "data.encoding"):
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

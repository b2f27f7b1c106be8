"""Rows with several sides (such as languages): a model that reads one side gets the rows that have it, by their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dtrain.data.columns import TextColumn
from dtrain.data.corpus import Corpus
from dtrain.errors import counted
from dtrain.recipe.terms import ADVERSARY
from dtrain.recipe.training import Student, Teacher

if TYPE_CHECKING:
    from dtrain.recipe.schema import Recipe

FOLDER = "sides"  # in the folder of rows: a folder for each side


@dataclass(frozen=True)
class SideView:
    """The rows that have one side, which is their text.

    Attributes:
        corpus: these rows, without the parts in which no row has the side.
        index: by part, the position of each of these rows among all rows of the part, int64 [N].
        parallel: by part, whether a row has further sides in other columns, bool [N].
    """

    corpus: Corpus
    index: dict[str, np.ndarray]
    parallel: dict[str, np.ndarray]


def view_of(corpus: Corpus, side: str) -> SideView:
    """The rows of a corpus that have `side`, with that side as their text."""
    found = SideView(replace(corpus, parts={}, numbers={}, remarks=[]), {}, {})
    for part, rows in corpus.parts.items():
        texts, index, parallel = TextColumn(), [], []
        for number, (sides, together) in enumerate(rows.sides):
            if side in sides:
                texts.append(sides[side])
                index.append(number)
                parallel.append(together)
        if index:
            found.index[part] = np.array(index, dtype=np.int64)
            found.parallel[part] = np.array(parallel, dtype=bool)
            found.corpus.parts[part] = replace(rows.take(found.index[part]), text=texts)
            found.corpus.numbers[part] = corpus.numbers[part][found.index[part]]
    return found


def side_counts(corpus: Corpus, sides: list[str]) -> dict[str, Any]:
    """The entries of `data.json` about sides.

    Returns:
        `sides`: for each side, by part, the number of rows, of rows with each label, of labelled rows and of pairs;
        `together`: the number of rows with each combination of sides, as [part, sides, rows].
    """
    views = {side: view_of(corpus, side) for side in sides}
    together: Counter[tuple[str, ...]] = Counter()
    for part, rows in corpus.parts.items():
        together.update((part, *texts) for texts, _ in rows.sides)
    return {
        "sides": {
            side: {
                "rows": view.corpus.counts,
                "label_counts": view.corpus.label_counts,
                "labelled": {part: int((found >= 0).sum()) for part, found in view.corpus.numbers.items()},
                "pairs": {part: int(found.sum()) for part, found in view.parallel.items()},
            }
            for side, view in views.items()
        },
        "together": [[part, found, rows] for (part, *found), rows in together.items()],
    }


def label_counts(info: Mapping[str, Any], side: str) -> dict[str, dict[str, int]]:
    """By part, the number of rows with each label among the rows with a side ("" where rows have no sides).

    Args:
        info: the content of `data.json`.
    """
    found: dict[str, dict[str, int]] = (info["sides"][side] if side else info)["label_counts"]
    return found


def parts_of(info: Mapping[str, Any], side: str) -> list[str]:
    """The parts that have rows with a side; `info` is the content of `data.json`."""
    return list((info["sides"][side] if side else info)["rows"])


def sides_in_words(info: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """A line for each side: the number of rows that have it by part, and the members that read it."""
    lines = []
    for side, of_side in info.get("sides", {}).items():
        readers = [m.name for m in (*recipe.teachers, *recipe.students) if m.reads == side]
        rows = ", ".join(f"{part} {count:,}" for part, count in of_side["rows"].items())
        lines.append(f"side {side}: {rows or 'no row'}; read by {', '.join(readers)}")
    return lines


def check_sides(info: Mapping[str, Any], recipe: Recipe) -> tuple[list[str], list[str]]:
    """Problems and remarks, a line each, about members that read a side which few rows have.

    Args:
        info: the content of `data.json`, or the result of `side_counts`.
    """
    problems: list[str] = []
    remarks: list[str] = []
    members = [(f"teachers.{m.name}", m) for m in recipe.teachers] + [
        (f"students.{m.name}", m) for m in recipe.students
    ]
    for key, member in members:
        if member.reads is None:
            continue
        labels = label_counts(info, member.reads)
        if not member.given:
            problems += [f"{key}.{problem}" for problem in _untrainable(member, labels, info, recipe)]
        told = [part for part in ("valid", *recipe.report.splits) if part not in labels]
        if "valid" in told and not member.given:
            remarks.append(
                f"{key}: no validation row with a label has {member.reads}: the weights of its last epoch are kept"
            )
        if unscored := [part for part in recipe.report.splits if part in told]:
            remarks.append(
                f"{key}: not scored on {' and '.join(unscored)}, where no row with a label has {member.reads}"
            )
    if recipe.search is not None:
        unseen = [m.name for m in recipe.students if m.reads and "valid" not in label_counts(info, m.reads)]
        if unseen:
            problems.append(f"search: compares students on validation rows, and none has what {unseen[0]} reads")
    return problems, remarks


def _untrainable(
    member: Teacher | Student, labels: Mapping[str, Any], info: Mapping[str, Any], recipe: Recipe
) -> list[str]:
    """Why a member cannot be trained on the rows that have its side; a line each, none if it can."""
    assert member.reads is not None
    of_side = info["sides"][member.reads]
    rows = of_side["rows"]
    if isinstance(member, Teacher):
        found = counted(rows.get("train", 0), "training row")
        if "train" not in labels:
            return [f"reads: {found} of data.train has {member.reads}, and none a label"]
        if member.domain_adversary is None:
            return []
        if "transfer" not in rows:
            return [f"domain_adversary: tells labelled rows from transfer rows, and none of these has {member.reads}"]
        return _one_kind(member.domain_adversary.between, "domain_adversary", ["train", "transfer"], of_side)
    teachers = {teacher.name: teacher for teacher in recipe.teachers}
    problems = []
    for training in member.trainings:
        names = [part for part in training.rows or [] if part in ("train", "transfer")]
        if names and not any(part in rows for part in names):
            return [f"reads: no row of {' and '.join(names)} has {member.reads}"]
        losses = training.losses or []
        taught = [name for name in training.teachers or [] if any(loss.loss.teacher_output for loss in losses)]
        for name in [*taught, *(training.teachers or [] if training.taught_rows else [])]:
            both = {member.reads, teachers[name].reads}
            if not any(both <= set(sides) for part, sides, _ in info["together"] if part in ("train", "transfer")):
                problems.append(
                    f"teachers: no row of train or transfer has both {member.reads} and {teachers[name].reads}, which "
                    f"{name} reads"
                )
            elif "interpolated" in (training.rows or []) and not any(
                both <= set(sides) for part, sides, _ in info["together"] if part == "train"
            ):
                problems.append(
                    f"rows: interpolated are training rows, whose targets choose among the candidates of {name}, and none of "
                    f"train has {' and '.join(sorted(filter(None, both)))}"
                )
        for term in losses:
            if term.type == ADVERSARY:
                problems += _one_kind(term.parameters()["between"], f"losses ({term.type})", names, of_side)
        if not taught and names and "train" not in labels and all(loss.loss.hard for loss in losses):
            problems.append(
                f"losses: no row of train that has {member.reads} has a label, and it learns from nothing else"
            )
    return list(dict.fromkeys(problems))


def _one_kind(between: str, key: str, parts: Sequence[str], of_side: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The problem where all rows of a side are of the same one of the two kinds that an adversary tells apart."""
    kinds = "rows of pairs and rows of one side" if between == "pairs" else "rows with a label and rows without one"
    counts = of_side["pairs" if between == "pairs" else "labelled"]
    ones, every = (sum(found.get(part, 0) for part in parts) for found in (counts, of_side["rows"]))
    if 0 < ones < every:
        return []
    return [f"{key}: tells apart {kinds}, and all {every:,} rows of {' and '.join(parts)} are of one kind"]

"""The report on several tasks together: a row for each model, a column for each task. Each task also has its own report.

The reports of the tasks (`results.py`) come first, and this one is made of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

from dtrain.recipe.schema import Recipe
from dtrain.report.results import spread
from dtrain.report.tables import Row, Table, kind, large, score_of, spread_text
from dtrain.tasks.registry import VIEWS


def overview(recipe: Recipe, results: Mapping[str, Row]) -> Row:
    """What the page on all tasks shows (`results.json`).

    Args:
        results: for each task by its name, what `results.collect` gave.

    Returns:
        Plain values: `name`; `tasks`, by name, each with its kind `task`, its leading score (`lead`, `title`), the part whose
        scores are shown (`headline`), `rows` and the names of its best `teacher` and `student`; `groups`, models that differ
        only in their seed, teachers first, each with its `scores` by task (mean and sample standard deviation) and, if it
        has one on every task, `mean`, the mean over the tasks. A teacher that reads annotations has a second entry, with
        `annotated_by`, for those that a tagger found. Further `failed`, `remarks` and `versions`.
    """
    tasks: dict[str, Row] = {}
    groups: dict[tuple[str, ...], Row] = {}  # by kind and members: groups of two tasks may have the same name
    for name, of in results.items():
        view = VIEWS[of["task"]]
        keys = ("task", "headline", "rows", "teacher", "student")
        tasks[name] = {**{key: of[key] for key in keys}, "lead": view.lead, "title": view.title}
        for group in of["groups"]:
            known = ("kind", "name", "type", "members", "seeds", "parameters", "bytes")
            row = groups.setdefault(
                (group["kind"], *group["members"]),
                {**{key: group[key] for key in known if key in group}, "teachers": [], "scores": {}},
            )
            row["teachers"] += [teacher for teacher in group["teachers"] if teacher not in row["teachers"]]
            row["scores"][name] = score_of(group, view.lead, of, of["headline"])
            for tagger, scores in _with_annotations_found(group, of, view.lead).items():
                groups[group["kind"], *group["members"], tagger] = {
                    **row,
                    "annotated_by": tagger,
                    "scores": {name: spread(scores)},
                }
    for row in groups.values():
        if len(row["scores"]) == len(tasks) > 1:
            each = [
                [_own_score(of, VIEWS[of["task"]].lead, row["kind"], name) for of in results.values()]
                for name in row["members"]
            ]
            if not any(None in scores for scores in each):
                row["mean"] = spread([statistics.fmean(scores) for scores in each])
    order = {"teachers": 0, "students": 1}
    return {
        "name": recipe.name,
        "tasks": tasks,
        "groups": sorted(groups.values(), key=lambda row: (order[row["kind"]], len(row["scores"]))),
        "failed": list({(f["kind"], f["name"]): f for of in results.values() for f in of["failed"]}.values()),
        "remarks": [
            remark if f"tasks.{name}." in remark else f"{name}: {remark}"
            for name, of in results.items()
            for remark in of["remarks"]
        ],
        "versions": next(iter(results.values()))["versions"],
    }


def _with_annotations_found(group: Row, of: Row, lead: str) -> dict[str, list[float]]:
    """By tagger, the scores of a group's members with the annotations that the tagger finds."""
    found: dict[str, list[float]] = {}
    for row in of["annotated"] if group["kind"] == "teachers" else ():
        if row["annotated_by"] and row["name"] in group["members"] and of["headline"] in row["parts"]:
            found.setdefault(row["annotated_by"], []).append(row["parts"][of["headline"]][lead])
    return found


def table(results: Row) -> Table:
    """A row for each group of seeds, a column for each task."""
    tasks: dict[str, Row] = results["tasks"]
    titles = [f"{name}: {of['title']}, {of['headline']} (%)" for name, of in tasks.items()]
    writes = [partial(_score, name) for name in tasks]
    means = any("mean" in row for row in results["groups"])
    headers = ["model", "kind", "parameters", *titles, *["mean (%)"] * means]
    rows, marked = [], set()
    for number, row in enumerate(results["groups"]):
        mean = [spread_text(row["mean"]) if "mean" in row else ""] if means else []
        rows.append([row["name"], kind(row), large(row.get("parameters")), *(write(row) for write in writes), *mean])
        best = {of["student"] for of in tasks.values()}
        if not best.isdisjoint(row["members"]) and row["kind"] == "students":
            marked.add(number)
    return Table(headers, rows, frozenset(marked))


def brief(results: Row) -> list[str]:
    """One line for each group, for the terminal."""
    lines = []
    for row in results["groups"]:
        scores = [f"{name} {text} %" for name in results["tasks"] if (text := _score(name, row))]
        mean = [f"mean {spread_text(row['mean'])} %"] if "mean" in row else []
        lines.append(f"{row['name']} ({kind(row)}): {', '.join([*scores, *mean]) or 'not scored'}")
    return lines + [f"{failure['name']}: no result: {failure['reason']}" for failure in results["failed"]]


def _score(task: str, row: Row) -> str:
    return spread_text(row["scores"][task]) if task in row["scores"] else ""


def _own_score(of: Row, lead: str, kind: str, name: str) -> Any:
    """One model's score `lead` on the part whose scores are shown; None if no row there has the side that it reads."""
    model = next(model for model in of["models"] if (model["kind"], model["name"]) == (kind, name))
    return score_of(model, lead, of, of["headline"])

"""Knowledge points in the report: groups of students that differ in their seed alone, and texts with their tokens."""

from __future__ import annotations

import statistics
from typing import Any

from dtrain.plan import Plan
from dtrain.report.tables import Table, percent, significant
from dtrain.runfolder import read_json

COUNTS = ("foreground", "background", "share", "d_mean", "d_std", "kept")


def collect_points(plan: Plan, groups: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The counts of knowledge points by group; None if the recipe does not ask for them, or no student has any.

    Returns:
        `part`, `threshold`; `groups`, each with `name`, `members` (one student's counts each), and for each of `COUNTS` the
        list of its members' numbers.
    """
    if plan.recipe.knowledge_points is None or not plan.points_counted():
        return None
    counted = read_json(plan.folder.points / "points.json")["students"]
    found = []
    for group in groups:
        members = [counted[name] for name in group["members"] if group["kind"] == "students" and name in counted]
        if members:
            numbers = {key: [own[key] for own in members if own[key] is not None] for key in COUNTS}
            found.append({"name": group["name"], "members": members, **numbers})
    spec = plan.recipe.knowledge_points
    return {"part": spec.part, "threshold": spec.threshold, "groups": found} if found else None


def points_table(found: dict[str, Any]) -> Table:
    """One row for each group: the mean number of points in a text, where they are, and when they were learnt."""
    titles = [
        "student",
        "texts",
        "points in the foreground",
        "in the background",
        "share in the foreground (%)",
        "D_mean",
        "D_std",
        "kept (%)",
    ]
    rows = []
    for group in found["groups"]:
        texts = str(group["members"][0]["texts"])
        cells = [_spread(group[key], key in ("share", "kept")) for key in COUNTS]
        rows.append([group["name"], texts, *cells])
    return Table(titles, rows)


def _spread(values: list[float], in_percent: bool) -> str:
    """Mean ± sample standard deviation."""
    write = percent if in_percent else significant
    if not values:
        return ""
    deviation = f" ± {write(statistics.stdev(values))}" if len(values) > 1 else ""
    return write(statistics.fmean(values)) + deviation


def shaded_texts(found: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """For each text that is shown and each group, the tokens as the group's first member knows them.

    Each group has `name` and `tokens`; each token has `text`, `foreground`, `point` and `shade`, 0 if it is known no better
    than the background and 1 if it is the best known of all that are shown.
    """
    every = [group["members"][0]["examples"] for group in found["groups"]]
    most = max((t["depth"] for texts in every for text in texts for t in text), default=0.0)
    shown = []
    for number in range(min(map(len, every))):
        entry = []
        for group, texts in zip(found["groups"], every, strict=True):
            tokens = [
                {**token, "shade": round(max(0.0, token["depth"]) / most, 3) if most > 0 else 0.0}
                for token in texts[number]
            ]
            entry.append({"name": group["name"], "tokens": tokens})
        shown.append(entry)
    return shown

"""Collect what is known about every model of a run, as plain numbers under the usual names.

model folders (metrics.json, evaluation.json) + measured speed -> results.json
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtrain.data import tokenizer_name
from dtrain.data.summary import unknown_in_words
from dtrain.export.record import exports_of
from dtrain.metrics.tasks import scores_of
from dtrain.plan import Plan
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import Student, Teacher
from dtrain.report.points import collect_points
from dtrain.runfolder import RunFolder, fingerprint, is_done, read_json
from dtrain.tasks.registry import VIEWS
from dtrain.tasks.view import View

TRAINED = ("parameters", "bytes", "seconds_per_epoch", "rows_per_second", "best_epoch", "steps")
COSTS = ("parameters", "bytes", "seconds_per_epoch", "compression", "mean_layer")
_BY_MODEL = ("rows_per_second", "milliseconds")  # measurements that are stored with each model
_OWN = {"name", "seed", "grid", "checkpoint_every"}  # what may differ within a group


def collect(recipe: Recipe, plan: Plan, folder: RunFolder, speed: dict[str, Any] | None) -> dict[str, Any]:
    """Everything the report shows (`results.json`).

    Args:
        speed: what `dtrain.report.speed.measure_run` gave, or None if speed was not to be measured.

    Returns:
        Plain values:

        - `name`, `task`, `versions`
        - `part`: the part whose scores are at the top level of a model; those on a further part are a mapping under its name
        - `headline`: the part whose scores are shown first: test if it is scored, since valid chose the weights
        - `rows`, `also_in_train`: by part, how many rows it has, and of how many the text is in training, too
        - `sides`: where rows have several, for each the models that read it, and by part the rows that these are scored on
        - `teacher`, `student`: the names of the best ones on `part`
        - `models`, and `groups` of models that differ only in their seed
        - `exported`: what `dtrain export` made of them
        - `annotated`: for each teacher that reads annotations its scores by part, with the given ones and with those of
          `annotated_by`
        - `failed`: the members without a model, with the reasons
        - `search`: who went on and who was stopped at each comparison, or None
        - `phases`: for each phase of a student what `metrics.json` says of it, with the name of the `student`
        - `points`: see `collect_points`
        - `details` of the best student: classes and confusion, or types, their counts and examples
        - `remarks` on the data, and on models that learnt nothing
        - `speed`: how it was measured
    """
    view = VIEWS[recipe.data.task]
    members = trained_members(plan)
    parts = evaluated_parts(folder, members)
    models = [_model(kind, member, folder, parts, view) for kind, member in members]
    for model in models:
        for name, rates in (speed["rows_per_second"] if speed else {}).items():
            model[f"rows_per_second_{name}"] = rates[f"{model['kind']}/{model['name']}"]
        for name, times in (speed["milliseconds"] if speed else {}).items():
            for share, value in times[f"{model['kind']}/{model['name']}"].items():
                model[f"milliseconds_{name}_{share}"] = value
    teacher, student = (best(models, kind, view.lead, parts[1:]) for kind in ("teachers", "students"))
    for model in models:
        _compare(model, teacher)
    data = read_json(folder.data / "rows" / "data.json")
    groups = _groups(members, models, view)
    return {
        "name": recipe.name,
        "task": recipe.data.task,
        "part": parts[0] if parts else None,
        "headline": "test" if "test" in parts else parts[0] if parts else None,
        "rows": data["rows"],
        "also_in_train": data["also_in_train"],
        "sides": _sides(data, members, parts),
        "teacher": teacher["name"] if teacher else None,
        "student": student["name"] if student else None,
        "models": models,
        "groups": groups,
        "failed": [
            {"kind": kind, "name": member.name, "reason": _failure(folder, kind, member.name)}
            for kind, member in plan.members()
            if (kind, member) not in members
        ],
        "exported": _exported(members, folder, speed),
        "annotated": _annotated(members, folder),
        "search": _search(plan.whole, folder) if recipe.students else None,
        "phases": _phases(members, folder),
        "points": collect_points(plan, groups),
        "details": _details(folder, student or teacher, view),
        "remarks": [*data.get("remarks", []), *_unknown(members, folder), *_remarks(members, folder)],
        "speed": {key: value for key, value in speed.items() if key not in _BY_MODEL} if speed else None,
        "versions": read_json(folder.root / "versions.json") if (folder.root / "versions.json").exists() else {},
    }


def _sides(
    data: Mapping[str, Any], members: list[tuple[str, Teacher | Student]], parts: list[str]
) -> dict[str, dict[str, Any]]:
    """For each side of the rows, which models read it, and how many rows of each part these are scored on."""
    found = {}
    for side, of_side in data.get("sides", {}).items():
        readers = [member.name for _, member in members if member.reads == side]
        labelled = {part: of_side["labelled"][part] for part in parts if of_side["labelled"].get(part)}
        if readers:
            found[side] = {"models": readers, "rows": labelled}
    return found


def _exported(
    members: list[tuple[str, Teacher | Student]], folder: RunFolder, speed: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The exports of these models: size, what the check found, and speed if that was measured."""
    found = []
    for kind, member in members:
        for place in exports_of(folder, kind, member.name):
            entry = {"name": place.name, **read_json(place / "metrics.json")}
            own = f"export/{place.name}"
            for name, rates in (speed["rows_per_second"] if speed else {}).items():
                if own in rates:
                    entry[f"rows_per_second_{name}"] = rates[own]
            for name, times in (speed["milliseconds"] if speed else {}).items():
                for share, value in times.get(own, {}).items():
                    entry[f"milliseconds_{name}_{share}"] = value
            found.append(entry)
    return found


def trained_members(plan: Plan) -> list[tuple[str, Teacher | Student]]:
    """The members that have a model, trained and evaluated for exactly this recipe."""
    return [
        (kind, member)
        for kind, member in plan.members()
        if is_done(plan.folder.model(kind, member.name), plan.model(kind, member.name))
        and plan.evaluated(kind, member.name)
    ]


def evaluated_parts(folder: RunFolder, members: list[tuple[str, Teacher | Student]]) -> list[str]:
    """The parts that some model was scored on: those of `report.splits` that have labels, in the recipe's order.

    Where rows have several sides, a part may have no row with the one that a model reads.
    """
    own = [list(_evaluation(folder, kind, member.name)["parts"]) for kind, member in members]
    return list(dict.fromkeys(part for parts in sorted(own, key=len, reverse=True) for part in parts))


def best(models: list[dict[str, Any]], kind: str, lead: str, further: Sequence[str] = ()) -> dict[str, Any] | None:
    """The model of a kind with the highest score `lead`; of equal ones the smallest, then the first.

    Args:
        further: other parts, in order. If no model of the kind has a score at the top level, the first of these parts on
            which one has a score counts.
    """
    own = [model for model in models if model["kind"] == kind]
    scores = [[model[lead] for model in own], *([model[part][lead] for model in own] for part in further)]
    known = next((found for found in scores if any(score is not None for score in found)), [None] * len(own))
    ranks = [(-math.inf if score is None else score, -m["parameters"]) for m, score in zip(own, known, strict=True)]
    return own[ranks.index(max(ranks))] if own else None


def _model(kind: str, member: Teacher | Student, folder: RunFolder, parts: list[str], view: View) -> dict[str, Any]:
    trained = read_json(folder.model(kind, member.name) / "metrics.json")
    model = {
        "kind": kind,
        "name": member.name,
        "type": _structure(member, folder.model(kind, member.name)),
        "seed": member.seed,
        "teachers": list(getattr(member, "teachers", None) or []),
    }
    found = _evaluation(folder, kind, member.name)["parts"]
    unscored = {"scores": dict.fromkeys(("loss", *view.spread, *(key for key, _ in view.columns)))}
    first, *others = (found.get(part, unscored) for part in parts or [""])
    return {
        **model,
        **first["scores"],
        **{part: record["scores"] for part, record in zip(parts[1:], others, strict=True)},
        **{key: trained[key] for key in TRAINED if key in trained},
        **({f"exit_{key}": first["exits"][key] for key in ("layers", "rows")} if "exits" in first else {}),
        **({"mean_layer": first["exits"]["mean_layer"]} if "exits" in first else {}),
    }


def _structure(member: Teacher | Student, place: Path) -> str:
    """A member's type of model as the recipe names it; for a teacher taken as it is, as its `config.json` does."""
    if isinstance(member, Teacher) and member.source is not None:
        return str(read_json(place / "config.json")["model_type"]).removeprefix("dtrain-")
    return member.model.type


def _evaluation(folder: RunFolder, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder.model(kind, name) / "evaluation.json")
    return (
        found["tasks"][folder.task] if "tasks" in found else found
    )  # the first form is that of a model of several tasks


def _annotated(members: list[tuple[str, Teacher | Student]], folder: RunFolder) -> list[dict[str, Any]]:
    """The scores of teachers that read annotations: with the given ones, and with those that a tagger finds."""
    found = []
    for kind, member in members:
        if member.model.reads_privileged:
            record = _evaluation(folder, kind, member.name)
            predicted = record.get("predicted", {})
            for by, parts in ((None, record["parts"]), (predicted.get("annotated_by"), predicted.get("parts", {}))):
                if parts:
                    scores = {part: one["scores"] for part, one in parts.items()}
                    found.append({"name": member.name, "annotated_by": by, "parts": scores})
    return found


def _details(folder: RunFolder, model: dict[str, Any] | None, view: View) -> dict[str, Any] | None:
    """Classes and confusion, or types and examples, of one model on the first part that it was scored on."""
    scored = {} if model is None else _evaluation(folder, model["kind"], model["name"])["parts"]
    if model is None or not scored:
        return None
    part, record = next(iter(scored.items()))
    return {"kind": model["kind"], "name": model["name"], "part": part, **{key: record[key] for key in view.details}}


def _unknown(members: list[tuple[str, Teacher | Student]], folder: RunFolder) -> list[str]:
    """Remarks on given tokenizers that do not know much of the text."""
    names = dict.fromkeys(tokenizer_name(member) for _, member in members)
    places = {name: folder.data / "encoded" / name / "encoded.json" for name in names}
    told = (unknown_in_words(name, read_json(place)) for name, place in places.items() if place.is_file())
    return list(filter(None, told))


def _remarks(members: list[tuple[str, Teacher | Student]], folder: RunFolder) -> list[str]:
    """The remarks of training on models that learnt nothing, with the students that learn from such a teacher."""
    found = []
    for kind, member in members:
        pupils = [m.name for k, m in members if k == "students" and member.name in (getattr(m, "teachers", None) or [])]
        beside = f"; students that learn from it: {', '.join(pupils)}" if kind == "teachers" and pupils else ""
        remarks = read_json(folder.model(kind, member.name) / "metrics.json").get("remarks", [])
        if isinstance(member, Student) and member.is_part:  # each of its remarks begins with a task
            of = f"{folder.task}: "
            remarks = [remark.removeprefix(of) for remark in remarks if remark.startswith(of)]
        found += [f"{kind[:-1]} {member.name}: {remark}{beside}" for remark in remarks]
    return found


def _phases(members: list[tuple[str, Teacher | Student]], folder: RunFolder) -> list[dict[str, Any]]:
    """The phases of all students in order; of a student of several tasks only those on this task, with its scores."""
    names = [member.name for _, member in members if isinstance(member, Student) and member.phases is not None]
    return [
        {"student": name, **phase, "scores": scores_of(phase["scores"], folder.task)}
        for name in names
        for phase in read_json(folder.model("students", name) / "metrics.json")["phases"]
        if folder.task in phase.get("tasks", [folder.task])
    ]


def _search(plan: Plan, folder: RunFolder) -> list[dict[str, Any]] | None:
    """What was decided at each comparison of the search; None if there was no search."""
    try:
        record = read_json(folder.root / "search.json")
    except OSError:
        return None
    return record["rungs"] if record["fingerprint"] == plan.search else None


def _failure(folder: RunFolder, kind: str, name: str) -> str:
    """Why a member ended without a model."""
    for path in (folder.model(kind, name), folder.checkpoints(kind, name)):
        if (path / "failed.json").exists():
            return str(read_json(path / "failed.json")["reason"])
    return "not trained and evaluated yet"


def _compare(model: dict[str, Any], teacher: dict[str, Any] | None) -> None:
    """Ratios against the best teacher: parameters, and measured speed."""
    if teacher is None:
        return
    model["compression"] = teacher["parameters"] / model["parameters"]
    for key in [key for key in model if key.startswith("rows_per_second_") and key in teacher]:
        model[key.replace("rows_per_second", "speedup")] = model[key] / teacher[key]


def _groups(
    members: list[tuple[str, Teacher | Student]], models: list[dict[str, Any]], view: View
) -> list[dict[str, Any]]:
    """Models that differ in name and seed alone, with mean and sample standard deviation of their scores."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for (kind, member), model in zip(members, models, strict=True):
        same = member.model_dump(mode="json", exclude=_OWN)
        alike.setdefault(fingerprint(kind, same), []).append(model)
    groups = []
    for own in alike.values():
        first = own[0]
        parts = [key for key, value in first.items() if isinstance(value, dict)]
        costs = [key for key in first if key in COSTS or key.startswith(("rows_per_second_", "speedup_"))]
        groups.append(
            {
                **{key: first[key] for key in ("kind", "type", "teachers")},
                "name": _shared_name([model["name"] for model in own]),
                "members": [model["name"] for model in own],
                "seeds": [model["seed"] for model in own],
                **{key: spread([model[key] for model in own]) for key in view.spread},
                **{p: {key: spread([model[p][key] for model in own]) for key in view.spread} for p in parts},
                **{key: statistics.fmean(model[key] for model in own) for key in costs},
            }
        )
    return groups


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (None for a single value); both are None if a value is missing."""
    if any(value is None for value in values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _shared_name(names: list[str]) -> str:
    """The words that the names of a group's members have in common: bilstm-seed1, bilstm-seed2 -> bilstm."""
    if len(names) == 1:
        return names[0]
    words = [name.split("-") for name in names]
    same = [column[0] for column in zip(*words, strict=False) if len(set(column)) == 1]
    return "-".join(same) or names[0]

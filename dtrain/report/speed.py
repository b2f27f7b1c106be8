"""Measure the speed of all models of a run: which models, on which rows and devices."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import torch

from dtrain.data import EncodedSplit, PreparedData, tokenizer_name
from dtrain.export.record import can_be_run, exports_of
from dtrain.export.session import OpenExport, open_export
from dtrain.models import load
from dtrain.models.multi_task import for_task
from dtrain.recipe.schema import Knowledge
from dtrain.recipe.training import Student, Teacher
from dtrain.report.latency import machine, measure
from dtrain.runfolder import RunFolder, fingerprint
from dtrain.tasks.registry import task_of

BATCHES = (1, 64)


def measure_run(
    members: list[tuple[str, Teacher | Student]], part: str, folder: RunFolder, knowledge: Knowledge | None = None
) -> dict[str, Any]:
    """Measure the rows a second of every member on the CPU, and on a GPU if there is one.

    Args:
        part: the part whose rows are timed.
        folder: the run's, with the task's data.
        knowledge: the recipe's section, for tasks whose ways to ask a model depend on it.

    Returns:
        `rows_per_second` by measurement (`cpu_1`, `cpu_64`, `gpu_1`, `gpu_64`, and `cpu_1_WAY` and so on if the task has
        further ways to ask a model), and then by `kind/name`, for exports by `export/name`; `milliseconds` of one row, by
        measurement and name `p50` and `p99`; `rows`, the number of rows timed, and `repeats`, by measurement; `part`;
        `machine`.
    """
    data = PreparedData.open(folder)
    task = task_of(data)
    task.settle(knowledge or Knowledge())
    # Weights do not change the speed, so one model of each structure is timed, for each side of the rows that is read. But
    # with exits they decide at which layer a row leaves, and in writing where a text ends, so each such model is timed.
    structure = {
        f"{kind}/{member.name}": fingerprint(
            member.model.model_dump(mode="json"),
            member.reads,
            *([kind, member.name] if member.model.early_exits or len(task.ways) > 1 else []),
        )
        for kind, member in members
    }
    models, parts = {}, {}
    for kind, member in members:
        key = structure[f"{kind}/{member.name}"]
        if key not in models:
            models[key] = for_task(load(folder.model(kind, member.name)), folder.task)
            parts[key] = _part(data, part, member)
    exports = _exports(members, folder)
    for kind, member in members:
        for name, place in exports.get((kind, member.name), {}).items():
            models[name] = open_export(place, for_task(load(folder.model(kind, member.name)), folder.task))
            parts[name] = _part(data, part, member)
            structure[name] = name
    rates: dict[str, dict[str, float]] = {}
    times: dict[str, dict[str, dict[str, float]]] = {}
    rows: dict[str, int] = {}
    repeats: dict[str, int] = {}
    for device in ("cpu", "gpu") if torch.cuda.is_available() else ("cpu",):
        for batch, way in itertools.product(BATCHES, task.ways):
            here = {
                key: task.timed(model, parts[key], way)
                for key, model in models.items()
                if (device, way) == ("cpu", "") or not isinstance(model, OpenExport)  # which has one way
            }
            known = {name: key for name, key in structure.items() if key in here}
            timed = measure(here, parts, torch.device("cuda" if device == "gpu" else "cpu"), batch)
            title = f"{device}_{batch}" + (f"_{way}" if way else "")
            rows[title], repeats[title] = timed["rows"], timed["repeats"]
            rates[title] = {name: timed["rows_per_second"][key] for name, key in known.items()}
            if timed["milliseconds"]:
                times[title] = {name: timed["milliseconds"][key] for name, key in known.items()}
    told = {"rows": rows, "repeats": repeats, "part": part, "machine": machine()}
    return {"rows_per_second": rates, "milliseconds": times, **told}


def _part(data: PreparedData, part: str, member: Teacher | Student) -> EncodedSplit:
    """The rows of a part; if none of them has the side that the member reads, those of the first part with such rows."""
    tokenizer = tokenizer_name(member)
    there = data.parts_read(tokenizer)
    beside: Literal["own"] | None = "own" if member.model.reads_privileged else None
    return data.part(part if part in there else there[0], tokenizer, beside)


def _exports(members: list[tuple[str, Teacher | Student]], folder: RunFolder) -> dict[tuple[str, str], dict[str, Path]]:
    """By member, those of its exports that can be run here: the folder of each by `export/name`."""
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for kind, member in members:
        places = exports_of(folder, kind, member.name)
        found[kind, member.name] = {f"export/{place.name}": place for place in places if can_be_run(place)}
    return found

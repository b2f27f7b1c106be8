"""Speed of all models of a run: which to load, on which rows, on which devices."""

from __future__ import annotations

from typing import Any

import torch

from dtrain.data import PreparedData, tokenizer_name
from dtrain.models import load
from dtrain.models.multi_task import for_task
from dtrain.recipe.training import Student, Teacher
from dtrain.report.latency import machine, measure
from dtrain.runfolder import RunFolder, fingerprint

BATCHES = (1, 64)


def measure_run(members: list[tuple[str, Teacher | Student]], part: str, folder: RunFolder) -> dict[str, Any]:
    """Rows a second of every member on CPU, and on a GPU where there is one.

    Returns:
        `rows_per_second` by measurement (`cpu_1`, `cpu_64`, `gpu_1`, `gpu_64`) and then by `kind/name`; `rows`, the
        number of rows timed, by measurement; `part`; `machine`.
    """
    data = PreparedData.open(folder)
    # Weights do not change the speed, so one model of each structure is timed; but with exits they decide at which layer
    # a row leaves, and each such model is timed by itself.
    structure = {
        f"{kind}/{member.name}": fingerprint(
            member.model.model_dump(mode="json"), *([kind, member.name] if member.model.early_exits else [])
        )
        for kind, member in members
    }
    models, parts = {}, {}
    for kind, member in members:
        key = structure[f"{kind}/{member.name}"]
        if key not in models:
            models[key] = for_task(load(folder.model(kind, member.name)), folder.task)
            parts[key] = data.part(part, tokenizer_name(member))
    rates: dict[str, dict[str, float]] = {}
    rows: dict[str, int] = {}
    for device in ("cpu", "gpu") if torch.cuda.is_available() else ("cpu",):
        for batch in BATCHES:
            timed = measure(models, parts, torch.device("cuda" if device == "gpu" else "cpu"), batch)
            rows[f"{device}_{batch}"] = timed["rows"]
            rates[f"{device}_{batch}"] = {name: timed["rows_per_second"][key] for name, key in structure.items()}
    return {"rows_per_second": rates, "rows": rows, "part": part, "machine": machine()}

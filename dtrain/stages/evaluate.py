"""evaluate: score every teacher and student, each row once over all ranks."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dtrain.data import EncodedSplit, tokenizer_name
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError, Stopped
from dtrain.log import say
from dtrain.models import load
from dtrain.models.multi_exit import MultiExit
from dtrain.models.multi_task import for_task
from dtrain.plan import Plan, plan_of
from dtrain.predict.annotate import Annotator
from dtrain.predict.choose import trained_tagger
from dtrain.recipe import Recipe, Student, Teacher
from dtrain.runfolder import RunFolder, is_done, write_json
from dtrain.runtime.distributed import World
from dtrain.tasks.base import Task
from dtrain.tasks.prepared import PreparedTask, PreparedTasks
from dtrain.training.workers import Workers


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read the model folders, write `evaluation.json` into each that has none for exactly this model.

    Students that failed are left out; the report gives their reasons.

    Raises:
        InputError: a model is not trained yet, or no part to be reported has labels.
        Stopped: a stop was requested, between two models.
    """
    plan = plan_of(recipe)
    tasks = PreparedTasks.open(recipe, folder)
    for of in tasks.values():
        _check_labelled(of)
    waiting = world.run_on_main(lambda: _waiting(plan))
    for kind, member in plan.members():
        if [kind, member.name] not in waiting:
            continue
        if world.stop is not None and world.stop.agreed():
            what = f"stopped on request ({world.stop.reason}) before {kind[:-1]} {member.name}"
            raise Stopped(f"evaluate: {what}; the same command continues")
        precision = resolve_precision(member.precision, world.device, f"{kind}.{member.name}.precision")
        workers = Workers.of(world, precision, recipe.knowledge.batch_tokens)
        model, own = load(folder.model(kind, member.name)), tasks.all_of(member)
        found = {name: _records(for_task(model, name), member, of, workers) for name, of in own.items()}
        record: dict[str, Any] = {"fingerprint": plan.evaluation(kind, member.name)}
        if len(own) == 1:
            (records,) = found.values()
            scored = {"precision": precision, "parts": records["parts"]}
            record |= {key: value for key, value in records.items() if key != "parts"} | scored
        else:
            record |= {"precision": precision, "tasks": found}
        if isinstance(member, Teacher) and member.annotated_by is not None:
            (name, of), *_ = own.items()
            record |= _by_predicted(model, member, of, list(found[name]["parts"]), plan, workers)
        path = folder.model(kind, member.name) / "evaluation.json"
        world.run_on_main(functools.partial(write_json, path, record))
        for name, of in own.items():
            _tell(f"{kind[:-1]} {member.name}{f', {name}' if len(own) > 1 else ''}", of, found[name])


def _records(model: nn.Module, member: Teacher | Student, of: PreparedTask, workers: Workers) -> dict[str, Any]:
    """What `evaluation.json` holds about a model on one task."""
    own = member.parts.get(of.name, member) if isinstance(member, Student) else member
    tokenizer, task = tokenizer_name(own), of.kind
    # Where rows have several sides, a model is scored on the rows that have the side it reads.
    counts = of.data.label_counts(tokenizer)
    parts = [part for part in of.recipe.report.splits if part in counts]
    beside: Literal["own"] | None = "own" if member.model.reads_privileged else None
    return {
        "task": task.name,
        "labels": of.data.labels,
        **({"types": task.types} if task.types else {}),
        "parts": {part: _record(model, of.data.part(part, tokenizer, beside), task, workers) for part in parts},
    }


def _by_predicted(
    model: nn.Module, teacher: Teacher, of: PreparedTask, parts: list[str], plan: Plan, workers: Workers
) -> dict[str, Any]:
    """The scores of a teacher with the annotations that a tagger of the recipe finds; empty if that tagger failed."""
    assert teacher.annotated_by is not None
    name = teacher.annotated_by
    if plan.failure(name) is not None:
        say(f"teacher {teacher.name}: not scored with predicted annotations, since student {name} failed")
        return {}
    _, place = trained_tagger(plan, name)
    annotate, task, tokenizer = Annotator(place, of.data.privileged, workers), of.kind, tokenizer_name(teacher)
    found = {part: _record(model, annotate.rows(of.data.part(part, tokenizer)), task, workers) for part in parts}
    _tell(f"teacher {teacher.name}, annotations by {name}", of, {"parts": found})
    return {"predicted": {"annotated_by": name, "parts": found}}


def _tell(title: str, of: PreparedTask, records: dict[str, Any]) -> None:
    if not records["parts"]:
        say(f"{title}: not scored: no row with a label has the side that it reads")
    for part, found in records["parts"].items():
        score = found["scores"]
        words = f"{of.kind.headline(score)}, loss {score['loss']:.4f} on {score['rows']:,} rows"
        left = f"; {exits_in_words(found['exits'])}" if "exits" in found else ""
        say(f"{title}: {part}: {words}{left}")


def _record(model: nn.Module, rows: EncodedSplit, task: Task, workers: Workers) -> dict[str, Any]:
    """What `evaluation.json` holds about a model on one part."""
    record = task.record(model, rows, workers)
    if isinstance(model, MultiExit) and model.confidence is not None:
        record["exits"] = count_exits(model, rows, workers)
    return record


def count_exits(model: MultiExit, part: EncodedSplit, workers: Workers) -> dict[str, Any]:
    """Count at which exits the labelled rows of a part leave the model, summed over all ranks.

    Returns:
        `layers`, those that have an exit, ascending; `rows`, how many left at each; `mean_layer`, the mean number of layers
        that a row passes.
    """
    counts = torch.zeros(len(model.exits), dtype=torch.int64)
    labelled = np.flatnonzero(part.labels >= 0)
    for _, (taken,) in workers.outputs(model, part, lambda output: (output.exit,), labelled):
        counts += torch.bincount(taken.cpu(), minlength=len(model.exits))
    rows = workers.sum(counts).tolist()
    passed = sum(layer * count for layer, count in zip(model.exits, rows, strict=True))
    return {"layers": model.exits, "rows": rows, "mean_layer": passed / max(1, sum(rows))}


def exits_in_words(exits: dict[str, Any]) -> str:
    """The counts in words, as `left after layer 1: 40.0%, 4: 60.0%; 2.80 layers a row`."""
    total = max(1, sum(exits["rows"]))
    shares = [f"{layer}: {rows / total:.1%}" for layer, rows in zip(exits["layers"], exits["rows"], strict=True)]
    return f"left after layer {', '.join(shares)}; {exits['mean_layer']:.2f} layers a row"


def _check_labelled(of: PreparedTask) -> None:
    """Raise InputError where none of `report.splits` has labels."""
    splits = of.recipe.report.splits
    if not any(part in of.data.info["label_counts"] for part in splits):
        where = f" of {of.section.key}" if of.name else ""
        raise InputError(f"report.splits: none of {', '.join(splits)}{where} has labelled rows")


def _waiting(plan: Plan) -> list[list[str]]:
    """Models to score, as [kind, name]."""
    waiting, missing = [], []
    for kind, member in plan.members():
        place = plan.folder.model(kind, member.name)
        if plan.evaluated(kind, member.name):
            say(f"{kind[:-1]} {member.name}: evaluated, nothing to do")
        elif is_done(place, plan.model(kind, member.name)):
            waiting.append([kind, member.name])
        elif kind == "teachers" or plan.failure(member.name) is None:
            stage = "finetune" if kind == "teachers" else "distill"
            missing.append(f"{place}: not trained yet for this recipe; run the stage `{stage}` first")
    if missing:
        raise InputError(missing)
    return waiting

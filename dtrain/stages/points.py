"""points: which tokens of texts students know at each epoch of their training, over all ranks."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from dtrain.data import tokenizer_name
from dtrain.errors import InputError, Stopped
from dtrain.log import say
from dtrain.models import load
from dtrain.plan import Plan, plan_of
from dtrain.points.count import path_lengths, points_of, summary
from dtrain.points.foreground import KEY
from dtrain.points.measure import measure
from dtrain.points.noise import NoiseSearch
from dtrain.points.texts import Texts, choose_texts, read_texts
from dtrain.recipe import Recipe, Student
from dtrain.recipe.points import KnowledgePoints
from dtrain.runfolder import DONE, RunFolder, mark_done, read_json, write_json
from dtrain.runtime.distributed import World
from dtrain.students.phases import places
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training.kept_epochs import kept_epochs, weights_at
from dtrain.training.workers import Workers

SHOWN = 5  # texts that the report shows


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read the weights that students kept at each epoch, write `points/`: each epoch's entropies, then the counts.

    Raises:
        InputError: the recipe has no section for it, kept epochs are missing, or too few texts have a foreground.
        Stopped: a stop was requested, between two epochs.
    """
    spec = recipe.knowledge_points
    if spec is None:
        raise InputError(f"{KEY}: the recipe has no such section, which says what is to be looked at")
    plan = plan_of(recipe)
    (of,) = PreparedTasks.open(recipe, folder).values()
    pairs = world.run_on_main(lambda: list(choose_texts(spec, of).items()))  # sent as JSON, whose keys are not numbers
    chosen = {int(number): list(words) for number, words in pairs}
    texts: dict[str, Texts] = {}
    counted: dict[str, Any] = {}
    for student in plan.with_epochs():
        name = tokenizer_name(student)
        if name not in texts:
            texts[name] = read_texts(spec, of, name, chosen)
        counted[student.name] = _count(student, spec, plan, texts[name], world)
        _tell(student, counted[student.name])
    world.run_on_main(lambda: _write(counted, plan))


def _count(student: Student, spec: KnowledgePoints, plan: Plan, texts: Texts, world: World) -> dict[str, Any]:
    """What `points.json` says about a student; measures the epochs that are not measured yet."""
    folder = plan.folder
    epochs = world.run_on_main(lambda: _epochs(student, plan))
    search = NoiseSearch(spec.share, spec.steps, spec.samples)
    workers = Workers.of(world, "fp32")
    found = []
    for epoch in epochs:
        path, identity = folder.points / student.name / f"{epoch:04d}.json", plan.points_of(student)
        own = world.run_on_main(functools.partial(_read, path, identity))
        if own is None:
            if world.stop is not None and world.stop.agreed():
                what = f"stopped on request ({world.stop.reason}) before epoch {epoch} of student {student.name}"
                raise Stopped(f"points: {what}; the same command continues")
            model = load(folder.model("students", student.name))
            model.load_state_dict(weights_at(folder.epochs(student.name), epoch))
            measured = measure(model, texts, search, plan.recipe.seed, workers)
            own = [[float(number) for number in text] for text in measured]
            record = {"fingerprint": identity, "entropies": own}
            world.run_on_main(functools.partial(write_json, path, record))
        found.append([np.array(text, dtype=np.float32) for text in own])
    points = [points_of(each, texts.background, spec.threshold) for each in found]
    path_of = world.run_on_main(
        lambda: path_lengths(weights_at(folder.epochs(student.name), epoch) for epoch in epochs)
    )
    end = _end(folder.model("students", student.name), epochs)
    counts = summary(points, texts.foreground, texts.background, path_of, end)
    for epoch, length, entry in zip(epochs, path_of, counts["epochs"], strict=True):
        entry |= {"epoch": epoch, "path": length}
    return {
        "texts": len(texts.rows),
        "end": epochs[end],
        **counts,
        "examples": _examples(texts, found[end], points[end]),
    }


def _epochs(student: Student, plan: Plan) -> list[int]:
    """The epochs that a student has kept, from 0.

    Raises:
        InputError: some are missing.
    """
    place = plan.folder.epochs(student.name)

    def identity(epoch: int) -> str | None:
        if student.phases is None:
            return plan.model("students", student.name)
        for phase in reversed(places(plan.folder, student)):
            if epoch > phase.first_epoch or epoch == 0 == phase.first_epoch:
                return plan.phase(student.name, phase.number)
        return None

    found = kept_epochs(place, identity)
    if len(found) < 2 or found[0] != 0:
        model = plan.folder.model("students", student.name)
        raise InputError(
            f"{place}: does not hold the epochs of this student any more; remove {model} and run distill again"
        )
    return found


def _end(model: Path, epochs: list[int]) -> int:
    """The place in `epochs` of the kept epoch that is nearest to the one whose weights the model has."""
    best = read_json(model / "metrics.json")["best_epoch"]
    return min(range(len(epochs)), key=lambda number: (abs(epochs[number] - best), number))


def _read(path: Path, identity: str) -> list[list[float]] | None:
    try:
        record = read_json(path)
        return record["entropies"] if record["fingerprint"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _examples(texts: Texts, entropies: list[np.ndarray], points: list[np.ndarray]) -> list[list[dict[str, Any]]]:
    """For the first texts, each token: whether it is foreground, or a point, and its depth below the background's mean."""
    shown = []
    for row in range(min(SHOWN, len(texts.rows))):
        own = entropies[row].astype(np.float64)
        depth = own[texts.background[row]].mean() - own
        shown.append(
            [
                {
                    "text": piece,
                    "depth": round(float(depth[number]), 4),
                    "foreground": bool(texts.foreground[row][number]),
                    "point": bool(points[row][number]),
                }
                for number, piece in enumerate(texts.pieces[row])
                if piece
            ]
        )
    return shown


def _write(counted: dict[str, Any], plan: Plan) -> None:
    """Write `points.json`, and curves for TensorBoard."""
    folder = plan.folder
    (folder.points / DONE).unlink(missing_ok=True)
    write_json(folder.points / "points.json", {"students": counted})
    shutil.rmtree(folder.tensorboard("points"), ignore_errors=True)  # curves of earlier counts
    for name, of in counted.items():
        with SummaryWriter(str(folder.tensorboard("points", name))) as writer:
            for entry in of["epochs"]:
                for key in ("foreground", "background", "share"):
                    if entry[key] is not None:
                        writer.add_scalar(f"points/{key}", entry[key], entry["epoch"])
    mark_done(folder.points, plan.points)
    say(f"points: {folder.points / 'points.json'}")


def _tell(student: Student, of: dict[str, Any]) -> None:
    share = "none" if of["share"] is None else f"{of['share']:.1%}"
    mean = "" if of["d_mean"] is None else f"; learnt at {of['d_mean']:.3f} ± {of['d_std']:.3f} of the weights' path"
    say(
        f"student {student.name}: at epoch {of['end']}, {of['foreground']:.2f} knowledge points a text in the foreground and "
        f"{of['background']:.2f} in the background ({share} in the foreground){mean}"
    )

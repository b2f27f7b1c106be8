"""The stages: each a page that reads from top to bottom, and the one place that runs them."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import importlib
import os
import sys
import time
from typing import IO, TYPE_CHECKING

from dtrain.errors import EXIT_DONE, DtrainError, EveryStudentFailed, InputError, Stopped
from dtrain.log import say
from dtrain.recipe import Recipe, dump_recipe
from dtrain.runfolder import RunFolder, atomic_write, remove_leftovers, write_json

if TYPE_CHECKING:
    from dtrain.distributed import World
    from dtrain.students.groups import Group

REQUIRED = {
    "prepare": ("pretrain",),  # where the recipe has that section
    "finetune": ("pretrain", "prepare"),
    "precompute": ("prepare", "finetune"),
    "distill": ("prepare", "precompute"),
    "evaluate": ("prepare",),  # and the models, which it names one by one
    "report": ("prepare",),  # likewise
}
LOST_NODE_SECONDS = 180  # NFS keeps a lost client's locks for 90
_locks: list[IO[str]] = []


def run_stages(recipe: Recipe, stages: list[str], arguments: argparse.Namespace) -> int:
    """Run `stages` in order in this process, one rank of however many were launched."""
    from dtrain.distributed import connect, leave_together
    from dtrain.plan import Plan
    from dtrain.stages.check import check_inputs
    from dtrain.students.groups import parse_group
    from dtrain.training.stop import StopRequest

    world = connect(timeout=recipe.launch.timeout)
    folder = Plan(recipe).folder
    group = parse_group(getattr(arguments, "group", None))
    whole, recipe = recipe, group.own(recipe) if group else recipe
    with leave_together(world):
        if "LOCAL_RANK" in os.environ and not getattr(arguments, "here", False):
            world.main_first(lambda: check_inputs(recipe))  # who was started by `dtrain run` was checked by it
        _check_precisions(recipe, world, stages)
        if stages == ["predict"]:
            from dtrain.stages import predict

            names = ("model", "input", "output", "form")
            predict.run(recipe, world, folder, **{name: getattr(arguments, name) for name in names})
            return EXIT_DONE
        world.main_first(lambda: _require_earlier(recipe, stages))
        world.main_first(lambda: _open_folder(whole, folder, group))
        world.stop = StopRequest(world, folder.root)
        for stage in stages:
            if world.stop.agreed():
                raise Stopped(f"stopped on request ({world.stop.reason}) before {stage}; the same command continues")
            module = importlib.import_module(f"dtrain.stages.{stage}")
            begin = time.perf_counter()
            if world.main_first(functools.partial(Plan(recipe).stage_done, stage)):
                if stage == "distill" and not group:
                    world.main_first(Plan(recipe).require_a_student)
                say(f"{stage}: complete, nothing to do")
                continue
            # One group's failures are for the report to tell; the other groups' students may have gone well.
            with contextlib.suppress(EveryStudentFailed) if group else contextlib.nullcontext():
                module.run(recipe, world, folder)
            say(f"{stage}: done in {time.perf_counter() - begin:.1f} s")
    return EXIT_DONE


def _require_earlier(recipe: Recipe, stages: list[str]) -> None:
    """A stage reads what earlier ones wrote for exactly this recipe and these files, and nothing older."""
    from dtrain.plan import Plan

    plan = Plan(recipe)
    for stage in stages:
        for earlier in REQUIRED.get(stage, ()):
            if earlier not in stages and not plan.stage_done(earlier):
                place = f"{stage}: {plan.folder.root}"
                raise InputError(f"{place}: `{earlier}` is not complete for this recipe; run it first")


def _open_folder(recipe: Recipe, folder: RunFolder, group: Group | None) -> None:
    """Make the run folder this launch's own, and write what it is run with.

    Groups of students work beside each other: each owns its students, and none cleans up or writes what all share.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    _lock(folder, ".lock", fcntl.LOCK_SH if group else fcntl.LOCK_EX)
    if group:
        _lock(folder, f".lock-group-{group.number}-of-{group.count}", fcntl.LOCK_EX)
        return
    remove_leftovers(folder.root)
    with atomic_write(folder.root / "recipe.yaml") as file:
        file.write(dump_recipe(recipe))
    write_json(folder.root / "versions.json", versions())


def _lock(folder: RunFolder, name: str, kind: int) -> None:
    """Hold a lock until this process ends, however it ends.

    A job that was requeued waits: what its lost node still runs, or a server that believes so, lets go in the end.
    """
    lock = (folder.root / name).open("w")
    deadline = time.monotonic() + (LOST_NODE_SECONDS if "SLURM_RESTART_COUNT" in os.environ else 0)
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DtrainError(f"{folder.root}: another run is at work here; wait for it, or stop it") from None
            time.sleep(1)
            continue
        except OSError:
            pass  # a file system without locks
        _locks.append(lock)
        return


def _check_precisions(recipe: Recipe, world: World, stages: list[str]) -> None:
    """What this machine cannot compute in is said before anything is written."""
    from dtrain.training.engine import check_engine
    from dtrain.training.precision import resolve_precision

    if "pretrain" in stages:
        from dtrain.stages.pretrain import check_phases

        check_phases(recipe, world)
    if "finetune" in stages:
        for teacher in recipe.teachers:
            if teacher.source is None:
                check_engine(world, teacher)
    if {"finetune", "distill"} & set(stages):
        for kind, members in (("teachers", recipe.teachers), ("students", recipe.students)):
            for member in members:
                resolve_precision(member.precision, world.device, f"{kind}.{member.name}.precision")
    if "precompute" in stages:
        precision = resolve_precision(recipe.knowledge.precision, world.device, "knowledge.precision")
        if recipe.knowledge.unpadded:
            from dtrain.models.unpadded import check_unpadded

            check_unpadded(world.device, precision, [teacher.model.type for teacher in recipe.teachers])
        if recipe.knowledge.compile:
            from dtrain.stages.precompute import check_compile

            check_compile(world.device)


def versions() -> dict[str, str]:
    """Python and the packages that decide results; nothing from the environment."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in (
        "dtrain",
        "torch",
        "transformers",
        "accelerate",
        "deepspeed",
        "datasets",
        "tokenizers",
        "jieba",
        "numpy",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

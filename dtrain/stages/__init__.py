"""The stages: each a page that reads from top to bottom, and the one place that runs them."""

from __future__ import annotations

import argparse
import fcntl
import functools
import importlib
import os
import sys
import time
from typing import IO, TYPE_CHECKING

from dtrain.errors import EXIT_DONE, DtrainError, InputError, Stopped
from dtrain.log import say
from dtrain.recipe import Recipe, dump_recipe
from dtrain.runfolder import RunFolder, atomic_write, remove_leftovers, write_json

if TYPE_CHECKING:
    from dtrain.distributed import World

REQUIRED = {
    "finetune": ("prepare",),
    "precompute": ("prepare", "finetune"),
    "distill": ("prepare", "precompute"),
    "evaluate": ("prepare",),  # and the models, which it names one by one
    "report": ("prepare",),  # likewise
}
_locks: list[IO[str]] = []


def run_stages(recipe: Recipe, stages: list[str], arguments: argparse.Namespace) -> int:
    """Run `stages` in order in this process, one rank of however many were launched."""
    from dtrain.distributed import connect, leave_together
    from dtrain.plan import Plan
    from dtrain.stages.check import check_inputs
    from dtrain.training.stop import StopRequest

    world = connect()
    folder = Plan(recipe).folder
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
        world.main_first(lambda: _open_folder(recipe, folder))
        world.stop = StopRequest(world, folder.root)
        for stage in stages:
            if world.stop.agreed():
                raise Stopped(f"stopped on request ({world.stop.reason}) before {stage}; the same command continues")
            module = importlib.import_module(f"dtrain.stages.{stage}")
            begin = time.perf_counter()
            if world.main_first(functools.partial(Plan(recipe).stage_done, stage)):
                say(f"{stage}: complete, nothing to do")
                continue
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


def _open_folder(recipe: Recipe, folder: RunFolder) -> None:
    """Make the run folder this launch's own, and write what it is run with."""
    folder.root.mkdir(parents=True, exist_ok=True)
    lock = (folder.root / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DtrainError(f"{folder.root}: another run is at work here; wait for it, or stop it") from None
    except OSError:
        pass  # a file system without locks
    _locks.append(lock)  # held until this process ends, however it ends
    remove_leftovers(folder.root)
    with atomic_write(folder.root / "recipe.yaml") as file:
        file.write(dump_recipe(recipe))
    write_json(folder.root / "versions.json", versions())


def _check_precisions(recipe: Recipe, world: World, stages: list[str]) -> None:
    """What this machine cannot compute in is said before anything is written."""
    from dtrain.training.engine import resolve_precision

    if {"finetune", "distill"} & set(stages):
        for kind, members in (("teachers", recipe.teachers), ("students", recipe.students)):
            for member in members:
                resolve_precision(member.precision, world.device, f"{kind}.{member.name}.precision")
    if "precompute" in stages:
        resolve_precision(recipe.knowledge.precision, world.device, "knowledge.precision")


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
        "numpy",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

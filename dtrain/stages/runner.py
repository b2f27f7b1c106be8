"""Run stages in this process, one rank of those that were launched."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from dtrain.errors import EXIT_DONE, DtrainError, EveryStudentFailed, InputError, Stopped
from dtrain.log import say
from dtrain.plan import Plan, plan_of
from dtrain.recipe import Recipe, dump_recipe
from dtrain.runfolder import RunFolder, atomic_write, read_json, remove_leftovers, write_json
from dtrain.runtime.distributed import connect, leave_together
from dtrain.runtime.stop import StopRequest
from dtrain.stages import Stage, find_stage
from dtrain.stages.check import check_inputs
from dtrain.students.groups import Group
from dtrain.version import __version__

LOST_NODE_SECONDS = 180  # NFS keeps the locks of a client that is gone for 90 seconds
_VERSIONS_OF = (
    *("torch", "transformers", "accelerate", "deepspeed"),
    *("datasets", "tokenizers", "jieba", "numpy"),
)
_locks: list[IO[str]] = []


def run_stages(
    recipe: Recipe, names: list[str], *, group: Group | None = None, checked: bool = False, options: dict[str, Any]
) -> int:
    """Run the named stages in order and return the exit code.

    Args:
        group: the students to train, of those that the recipe has; None: all.
        checked: whether the process that started this one has checked the files that the recipe names.
        options: the stage's own options from the command line, where the command names a single stage.
    """
    world = connect(timeout=recipe.launch.timeout, backend=recipe.launch.backend)
    folder = plan_of(recipe).folder
    whole, recipe = recipe, group.own(recipe) if group else recipe
    stages = [find_stage(name) for name in names]
    with leave_together(world):
        if not checked and not recipe.kept:
            world.run_on_main(lambda: _check_inputs(recipe))
        pages = {stage.name: stage.load() for stage in stages}
        for page in pages.values():
            if hasattr(page, "check"):
                page.check(recipe, world)
        if stages[0].job is None:
            pages[stages[0].name].run(recipe, world, folder, **options)
            return EXIT_DONE
        world.run_on_main(lambda: _require_earlier(recipe, stages))
        world.run_on_main(lambda: _open_folder(whole, folder, group))
        world.stop = StopRequest(world, folder.root)
        for stage in stages:
            if world.stop.agreed():
                reason = f"stopped on request ({world.stop.reason}) before {stage.name}"
                raise Stopped(f"{reason}; the same command continues")
            begin = time.perf_counter()
            if world.run_on_main(functools.partial(plan_of(recipe).complete, stage.name)):
                if stage.name == "distill" and not group:
                    world.run_on_main(Plan(recipe).require_a_student)
                say(f"{stage.name}: complete, nothing to do")
                continue
            # If all students of one group failed, those of other groups may have succeeded; the report shows it.
            with contextlib.suppress(EveryStudentFailed) if group else contextlib.nullcontext():
                pages[stage.name].run(recipe, world, folder, **options)
            say(f"{stage.name}: done in {time.perf_counter() - begin:.1f} s")
    return EXIT_DONE


def run_on_folder(stage: Stage, place: Path, options: dict[str, Any]) -> int:
    """Run a stage on a model folder in place of a recipe and return the exit code."""
    world = connect()
    with leave_together(world):
        stage.load().run_folder(place, world, **options)
    return EXIT_DONE


def _check_inputs(recipe: Recipe) -> None:
    """Check the inputs only for the errors raised: the rows that were read must not be sent to the other ranks."""
    check_inputs(recipe)


def _require_earlier(recipe: Recipe, stages: list[Stage]) -> None:
    """Raise InputError unless the earlier stages that these need are complete for exactly this recipe and its files."""
    plan = plan_of(recipe)
    names = [stage.name for stage in stages]
    for stage in stages:
        for earlier in stage.needs:
            if earlier not in names and not plan.stage_done(earlier):
                place = f"{stage.name}: {plan.folder.root}"
                raise InputError(f"{place}: `{earlier}` is not complete for this recipe; run it first")


def _open_folder(recipe: Recipe, folder: RunFolder, group: Group | None) -> None:
    """Lock the run folder for this launch, and record the recipe and the versions of packages in it.

    Groups of students run side by side: each takes a lock of its own, and none removes leftovers or writes shared files.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    _lock(folder, ".lock", fcntl.LOCK_SH if group else fcntl.LOCK_EX)
    if group:
        _lock(folder, f".lock-group-{group.number}-of-{group.count}", fcntl.LOCK_EX)
        return
    if recipe.kept:
        return  # the recipe and the versions of when it was made stay as they are
    remove_leftovers(folder.root)
    _tell_of_older_formats(folder.root / "versions.json")
    with atomic_write(folder.root / "recipe.yaml") as file:
        file.write(dump_recipe(recipe))
    write_json(folder.root / "versions.json", versions())


def _tell_of_older_formats(path: Path) -> None:
    """Say that a run of dtrain 0.1 is done again: its fingerprints differ, and the reason would not be seen otherwise."""
    try:
        made_by = read_json(path)["dtrain"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if str(made_by).startswith("0.1."):
        say(f"{path.parent}: was made by dtrain {made_by}, whose files mean something else; every stage is done again")


def _lock(folder: RunFolder, name: str, kind: int) -> None:
    """Hold a lock until this process ends, however it ends.

    A requeued job waits for it: the node that was lost may still be at work, or a file server may believe so.
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


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide results; nothing else of the environment."""
    found = {"python": sys.version.split()[0], "dtrain": __version__}
    for package in _VERSIONS_OF:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found

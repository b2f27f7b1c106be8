"""`dtrain run`: group the stages by how they are started, and start `accelerate launch` for each group.

The launcher runs inside this process, so that its workers' exit codes and the user's signals pass through
unchanged: a worker that ends with 2 or 75 ends the command with 2 or 75, and a signal reaches the workers
at once, who then write a checkpoint, instead of being killed by the launcher's own shutdown.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil
import yaml

from dtrain import forks, ranks
from dtrain.errors import EXIT_DONE, EXIT_STOPPED, InputError, counted, exit_code_of
from dtrain.log import say
from dtrain.plan import Plan
from dtrain.recipe.schema import Recipe
from dtrain.runtime.machines import ONE_MACHINE, Machines, usable_cores
from dtrain.runtime.sharding import configs_folder, read_deepspeed
from dtrain.runtime.signals import LAUNCHER, SIGNALS
from dtrain.stages import find_stage, of_run

SUPPORTED = ("MULTI_GPU", "MULTI_CPU", "NO", "FSDP", "DEEPSPEED")


@dataclass(frozen=True)
class Way:
    """How a group of stages is started."""

    processes: int  # on each machine
    config: Path  # a single process is started without accelerate, and only the precision of its config counts


def groups(recipe: Recipe, stages: list[str], machines: int = 1) -> list[tuple[Way, list[str]]]:
    """Group consecutive stages that are started alike into one launch, since every launch takes seconds to start.

    A stage that works with any number of processes joins the launch before it, or, where there is none, the one after it.
    """
    ways = [launch_spec(recipe, stage, machines) for stage in stages]
    free = [_is_free(recipe, stage) for stage in stages]
    for here in range(1, len(stages)):
        if free[here] and ways[here].config == ways[here - 1].config:
            ways[here], free[here] = ways[here - 1], free[here - 1]
    for here in range(len(stages) - 2, -1, -1):
        if free[here] and ways[here].config == ways[here + 1].config:
            ways[here] = ways[here + 1]
    found: list[tuple[Way, list[str]]] = []
    for way, stage in zip(ways, stages, strict=True):
        if found and found[-1][0] == way:
            found[-1][1].append(stage)
        else:
            found.append((way, [stage]))
    return found


def launch_spec(recipe: Recipe, stage: str, machines: int = 1) -> Way:
    """Processes and accelerate config of a stage: the recipe's `launch`, overridden by `launch.stages`."""
    special = recipe.launch.stages.get(stage)
    config = find_config((special and special.accelerate_config) or recipe.launch.accelerate_config)
    wanted = _wanted(recipe, stage)
    return Way(_automatic(recipe, stage, config, machines) if wanted == "auto" else int(wanted), config)


def launches_in_words(recipe: Recipe) -> list[str]:
    """How the recipe's stages are started, one line for each launch."""
    cores, lines = usable_cores(), []
    for way, group in groups(recipe, [stage.name for stage in of_run(recipe)]):
        each = max(1, cores // way.processes)
        lines.append(
            f"launch: {', '.join(group)}: {way.processes} process{'es' * (way.processes > 1)} "
            f"with {counted(each, 'core')}{' each' * (way.processes > 1)}"
        )
    return lines


def _wanted(recipe: Recipe, stage: str) -> int | str:
    special = recipe.launch.stages.get(stage)
    return (special and special.processes) or recipe.launch.processes


def _is_free(recipe: Recipe, stage: str) -> bool:
    """Whether the recipe leaves a stage's number of processes open, and the stage works equally well with any."""
    use = find_stage(stage).ranks
    return _wanted(recipe, stage) == "auto" and (use == "free" or not ranks.has_work(recipe, stage))


def _automatic(recipe: Recipe, stage: str, config: Path, machines: int) -> int:
    """Processes on each machine where the recipe leaves them open: one for each GPU; without GPUs see `dtrain.ranks`."""
    gpus = visible_gpus()
    if gpus:
        return gpus
    if yaml.safe_load(config.read_text(encoding="utf-8"))["distributed_type"] in ("FSDP", "DEEPSPEED"):
        return ranks.SHARDED
    return ranks.for_students(recipe, usable_cores(), machines) if find_stage(stage).ranks == "students" else 1


def find_config(name: str) -> Path:
    """The file of an accelerate config, given its name in `accelerate_configs/` or its path.

    Raises:
        InputError: there is no such file (the message lists the known configs), or it is malformed or not supported.
    """
    folder = configs_folder("accelerate_configs")
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            try:
                config = yaml.safe_load(path.read_text(encoding="utf-8"))
                kind = config["distributed_type"]
            except (yaml.YAMLError, ValueError, TypeError, KeyError):
                raise InputError(f"launch.accelerate_config: {path}: is no accelerate config") from None
            if kind not in SUPPORTED:
                allowed = ", ".join(SUPPORTED)
                raise InputError(f"launch.accelerate_config: {path}: distributed_type {kind!r} (allowed: {allowed})")
            if kind == "DEEPSPEED":
                read_deepspeed((config.get("deepspeed_config") or {}).get("deepspeed_config_file", "none"))
            return path
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise InputError(f"launch.accelerate_config: no config {name!r} (allowed: a path, or one of {names})")


def visible_gpus() -> int:
    """The number of visible GPUs, asked of the driver, since importing torch would take a second."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(d.strip() not in ("", "-1") for d in visible.split(","))
    return _listed_gpus()


@functools.cache
def _listed_gpus() -> int:
    """The number of GPUs that the driver lists. Cached, since asking may take most of a second for every stage."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@dataclass(frozen=True)
class Imports:
    """The names of the modules that a launcher imports for the processes that it forks."""

    first: list[str]  # before the launch
    later: list[str]  # needed when the processes build models, or by the next launch


def launch(
    way: Way,
    arguments: list[str],
    machines: Machines = ONE_MACHINE,
    port: int = 0,
    imports: Imports | None = None,
) -> int:
    """Run `-m dtrain ARGUMENTS`, started as `way` says, and return the workers' exit code.

    Args:
        port: the port on the first machine at which the ranks of several machines connect.
        imports: fork the processes after importing these modules (see `dtrain.forks`); None: start new interpreters.
    """
    forward = _ForwardSignals()
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        if imports is not None:
            forks.load(imports.first)
        alone = way.processes * machines.count == 1
        if alone:
            code = _alone(way, arguments, imports)
        else:
            if imports is not None:
                forks.load(imports.later)  # once for all ranks
            code = _of_several().accelerate_launch(
                way.config,
                way.processes * machines.count,
                arguments,
                machines,
                port,
                gpus=bool(visible_gpus()),
                forked=imports is not None,
            )
    finally:
        forward.restore()
        os.environ.pop(LAUNCHER, None)
    # A signal may come before the first worker starts or after the last has ended: start nothing more then.
    return EXIT_STOPPED if forward.received and code == EXIT_DONE else code


def _of_several() -> ModuleType:
    """The module that starts several processes, imported only for that: it takes a second, as it imports torch."""
    from dtrain import accelerate_launch

    return accelerate_launch


def _alone(way: Way, arguments: list[str], imports: Imports | None) -> int:
    precision = yaml.safe_load(way.config.read_text(encoding="utf-8")).get("mixed_precision", "no")
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": str(precision)}
    process: forks.Forked | subprocess.Popen[bytes]
    if imports is None:
        command = [sys.executable, "-m", "dtrain", *arguments]
        process = subprocess.Popen(command, start_new_session=True, env=environment)
    else:
        process = forks.Forked(arguments, environment)
        forks.load(imports.later, beside=process)  # on a core that the process does not need yet
    while (code := process.poll()) is None:  # wait() would not notice a signal that another thread received
        time.sleep(0.05)
    return exit_code_of([code])


class _ForwardSignals:
    """Pass the user's and the scheduler's signals on to the workers while they run.

    Workers inherit these signals blocked and unblock them once their handlers are set, so that none is killed while it
    starts. Here the main thread blocks the signals, too, and they arrive at a second thread, which does not block them;
    Python runs the handlers in the main thread anyway.
    """

    def __init__(self) -> None:
        self.received = False
        self._over = threading.Event()
        threading.Thread(target=self._over.wait, name="signals", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.before: dict[int, Any] = {number: signal.signal(number, self._forward) for number in SIGNALS}

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        workers = psutil.Process().children()
        for worker in workers:
            worker.send_signal(number)
        if not workers:
            raise SystemExit(EXIT_STOPPED)

    def restore(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._over.set()
        for number, handler in self.before.items():
            signal.signal(number, handler)


def run_everything(
    recipe: Recipe,
    stages: list[str],
    arguments: list[str],
    machines: Machines = ONE_MACHINE,
    *,
    own_process: bool = False,
) -> int:
    """Run every stage that is not done, in order, in as few launches as possible, and return the exit code.

    Args:
        arguments: the command line of the launched processes: the recipe, its overrides, and options.
        machines: the machines that run this same command together.
        own_process: whether this process does nothing else, so that it may be forked.
    """
    plan = Plan(recipe)
    ways = groups(recipe, stages, machines.count)
    if machines.count > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # see `accelerate_launch`
        # Only the main rank decides whether a stage is done: other machines may see files late.
        here = _of_several().meet(machines, recipe.launch.timeout)
        for number, (way, group) in enumerate(ways):
            words = ["run", *arguments, "--stages", ",".join(group), "--here"]
            code = launch(way, words, machines, machines.port + 1 + number)
            if code != EXIT_DONE:
                return code
        del here
        return EXIT_DONE
    if all(plan.stage_done(stage) for stage in stages):
        if "distill" in stages:
            plan.require_a_student()
        say(f"{plan.folder.root}: nothing to do, every stage is complete ({', '.join(stages)})")
        return EXIT_DONE
    may_fork = own_process and forks.possible() and not visible_gpus()
    for number, (way, group) in enumerate(ways):
        if all(Plan(recipe).complete(stage) for stage in group):
            if "distill" in group:
                Plan(recipe).require_a_student()
            say(f"{', '.join(group)}: complete, nothing to do")
            continue
        words = ["run", *arguments, "--stages", ",".join(group), "--here"]
        code = launch(way, words, imports=_imports(recipe, ways[number:]) if may_fork else None)
        if code != EXIT_DONE:
            return code
    return EXIT_DONE


def _imports(recipe: Recipe, ways: list[tuple[Way, list[str]]]) -> Imports:
    """The modules that the first of these launches needs at once, and those that it and the next ones need later."""
    (way, group), *next_ones = ways
    if way.processes == 1 and not next_ones:
        return Imports(forks.pages(group), [])  # the process itself imports the rest when it needs it
    several = ["dtrain.accelerate_launch"] if any(way.processes > 1 for way, _ in ways) else []
    later = [*forks.models(recipe), *several, *forks.pages(stage for _, group in next_ones for stage in group)]
    return Imports(forks.pages(group), later)

"""The command line. Nothing heavy is imported before it is known what to do."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from typing import TYPE_CHECKING

from dtrain import __version__
from dtrain.errors import EXIT_DONE, EXIT_FAILED, DtrainError, InputError
from dtrain.log import be_quiet, is_main_process

if TYPE_CHECKING:
    from dtrain.machines import Machines
    from dtrain.recipe import Recipe
    from dtrain.students.groups import Group

STAGES = ("pretrain", "prepare", "finetune", "precompute", "distill", "evaluate", "report")
HELP = {
    "pretrain": "a transformer from plain text: masked whole words, all ranks together",
    "prepare": "raw files -> normalised, split, encoded rows",
    "finetune": "train every teacher, all ranks together",
    "precompute": "every teacher's outputs, once, into the knowledge store",
    "distill": "train every student, placed over the ranks",
    "evaluate": "score every model, each row once over all ranks",
    "predict": "label or tag new text with a trained model",
    "report": "tables, plots and one page that compares teachers and students",
    "run": "every stage in order, starting `accelerate launch` itself",
    "submit": "every stage in order as SLURM jobs that wait for each other",
    "check": "validate the recipe and its data, print the resolved recipe, train nothing",
    "recipes": "list the shipped recipes",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="dtrain",
        description="Distil a large text encoder, fine-tuned over many GPUs, into small fast models.",
        epilog="Several processes: accelerate launch [--config_file accelerate_configs/X.yaml] -m dtrain STAGE RECIPE",
    )
    top.add_argument("--version", action="version", version=f"dtrain {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "recipes":
            continue
        command.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped one")
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key.path=value",
            help="change the recipe, as students.cnn.epochs=3",
        )
        if name == "run":
            command.add_argument("--stages", help=f"only these, comma-separated (of {','.join(STAGES)})")
            command.add_argument("--here", action="store_true", help="run inside this process or launch, start nothing")
            command.add_argument("--group", metavar="K/N", help="of the students, only group K (from 0) of N")
            command.add_argument("--machines", type=int, default=1, help="how many run this same command together")
            command.add_argument("--machine-rank", type=int, default=0, help="which of them this is, from 0")
            command.add_argument(
                "--rendezvous", metavar="HOST:PORT", help="the first machine; 8 ports from PORT are used"
            )
        elif name == "distill":
            command.add_argument("--plan", action="store_true", help="print who would train where; train nothing")
        elif name == "submit":
            _add_submit_options(command)
        elif name == "check":
            command.add_argument("--store", action="store_true", help="also verify every byte of the knowledge stores")
        elif name == "predict":
            command.add_argument("--model", help="a teacher's or student's name (default: the best student)")
            command.add_argument(
                "--input",
                help="a file of the recipe's format or of plain lines; - is stdin (default: the test rows)",
            )
            command.add_argument("--output", help="where to write (default: stdout)")
            command.add_argument(
                "--form",
                choices=("jsonl", "tsv", "clue", "conll"),
                default="jsonl",
                help="what to write (default: jsonl)",
            )
    return top


def _add_submit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--partition", default="", help="default: the cluster's")
    command.add_argument("--nodes", type=int, default=1, help="for finetune and precompute (default: 1)")
    command.add_argument("--gpus", type=int, default=0, help="a node (default: 0)")
    command.add_argument("--cpus", type=int, default=4, help="a node (default: 4)")
    command.add_argument("--groups", type=int, default=1, help="of students, a job each (default: 1)")
    command.add_argument("--time", default="04:00:00", help="of a job; a longer stage is requeued (default: 04:00:00)")
    command.add_argument("--requeues", type=int, default=5, help="of one job at most (default: 5)")
    command.add_argument("--dry-run", action="store_true", help="print the sbatch commands; nothing is written")
    command.add_argument("--local", action="store_true", help="run the same plan here, without SLURM")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (0 done, 2 bad input, 75 stopped on request, 1 anything else)."""
    arguments = _parse(argv)
    # Nothing is fetched behind the user's back in tests or on a cut-off cluster, and forks after threads stay quiet.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _command(arguments)
    except DtrainError as error:
        _tell(error)
        return error.exit_code
    except BrokenPipeError:
        return EXIT_FAILED
    except OSError as error:
        if error.errno is None or error.filename is None and error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"dtrain: {place}{error.strerror}", file=sys.stderr, flush=True)
        return EXIT_FAILED


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Options may stand between overrides, which argparse alone does not take after a subcommand."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _tell(error: DtrainError) -> None:
    for problem in error.problems:
        print(f"dtrain: {problem}", file=sys.stderr)
    sys.stderr.flush()


def _command(arguments: argparse.Namespace) -> int:
    from dtrain.recipe import load_recipe, shipped_recipes

    if arguments.command == "recipes":
        for name, path in shipped_recipes().items():
            with path.open(encoding="utf-8") as file:
                print(f"{name:26}{file.readline().lstrip('# ').strip()}")
        return EXIT_DONE
    launched = "LOCAL_RANK" in os.environ
    try:
        machines, group = _places(arguments)
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        stages = _stages(arguments, recipe)
        # Ranks of a launch let the main one read the files, once they are connected.
        if arguments.command == "check" or not (launched or getattr(arguments, "here", False)):
            _check_inputs(recipe)
    except InputError as error:
        # Every rank finds the same; the launcher ends the others when the first one leaves.
        if not is_main_process():
            error.problems = []
            _let_main_speak()
        raise
    if arguments.command == "check":
        from dtrain.stages.check import run as check

        return check(recipe, store=arguments.store)
    if arguments.command == "submit":
        from dtrain.submit import Cluster, submit

        asked = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Cluster)}
        return submit(recipe, Cluster(**asked), dry_run=arguments.dry_run, local=arguments.local)
    if arguments.command == "distill" and arguments.plan:
        from dtrain.launch import way_of
        from dtrain.stages.distill import show_plan

        show_plan(recipe, way_of(recipe, "distill").processes)
        return EXIT_DONE
    from dtrain import signals

    signals.limit_time(recipe.launch.time_limit)
    if arguments.command == "run" and not launched and not arguments.here:
        from dtrain.launch import run_everything

        words = [arguments.recipe, *arguments.overrides, *(["--group", arguments.group] if arguments.group else [])]
        return run_everything(group.own(recipe) if group else recipe, stages, words, machines)
    from dtrain.stages import run_stages

    if arguments.command != "predict":
        signals.listen()
    return run_stages(recipe, stages, arguments)


def _places(arguments: argparse.Namespace) -> tuple[Machines, Group | None]:
    """Which machine and which group of students `dtrain run` was told to be."""
    from dtrain.machines import ONE_MACHINE, parse_machines
    from dtrain.students.groups import parse_group

    if arguments.command != "run":
        return ONE_MACHINE, None
    machines = parse_machines(arguments.machines, arguments.machine_rank, arguments.rendezvous)
    if machines.rank:
        be_quiet()
    return machines, parse_group(arguments.group)


def _stages(arguments: argparse.Namespace, recipe: Recipe) -> list[str]:
    if arguments.command != "run":
        return _possible([arguments.command], recipe)
    if arguments.stages is None:
        return [stage for stage in STAGES if stage != "pretrain" or recipe.pretrain]
    asked = arguments.stages.split(",")
    for stage in asked:
        if stage not in STAGES:
            raise InputError(f"--stages: no stage {stage!r} (allowed: {', '.join(STAGES)})")
    return _possible([stage for stage in STAGES if stage in asked], recipe)


def _possible(stages: list[str], recipe: Recipe) -> list[str]:
    if "pretrain" in stages and not recipe.pretrain:
        raise InputError(f"{recipe.name}: the recipe has no section `pretrain`")
    return stages


def _check_inputs(recipe: Recipe) -> None:
    """What can be known to be wrong before anything is written or started."""
    from dtrain.stages.check import check_inputs

    check_inputs(recipe)


def _let_main_speak() -> None:
    import time

    time.sleep(5)


def _launcher_ends_us(seconds: float = 2.0) -> bool:
    """Whether a launcher that saw a rank die asks this one to end, too: it tells who died and of what."""
    import time

    from dtrain import signals

    deadline = time.monotonic() + seconds
    while not signals.received and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(signals.received)


def entry() -> None:
    """The console script."""
    from dtrain import signals

    signals.end_with_launcher()
    try:
        code = main()
    except Exception as error:
        # When a rank dies, the others' collectives fail; the reason is that rank's to tell.
        if any(word in str(error) for word in ("gloo", "NCCL", "ProcessGroup")):
            late = "imed out" in str(error) or "imeout" in str(error)
            what = "waited in a collective longer than launch.timeout for" if late else "lost the connection to"
            if late or not _launcher_ends_us():
                print(f"dtrain: rank {os.environ.get('RANK', '0')} {what} another rank", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        code = EXIT_FAILED
    if "torch" in sys.modules:
        from dtrain.distributed import leave

        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()

"""The command line. Heavy modules are imported only once the command is known."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pydoc
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain import __version__
from dtrain.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, DtrainError, InputError, suggest
from dtrain.log import be_quiet, is_main_process
from dtrain.manual import pages, terminal
from dtrain.runtime import signals
from dtrain.runtime.machines import ONE_MACHINE, Machines, parse_machines
from dtrain.stages import Option, Stage, find_stage, job_lines, of_run, option, run_names, stages

if TYPE_CHECKING:
    from dtrain.recipe import Recipe
    from dtrain.students.groups import Group

_RECIPE = (
    option("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped one"),
    option("overrides", nargs="*", metavar="key.path=value", help="change the recipe, as students.cnn.epochs=3"),
)
_WELCOME = f"""\
dtrain {__version__} distils large text encoders into small, fast models.

To try it, without data of your own:
  dtrain run quickstart            train small models (a minute and a half)
  dtrain recipes                   list the other recipes that come with it

On your own data:
  dtrain init train.jsonl          write a first recipe from a data file
  dtrain check RECIPE              is everything there? nothing is trained
  dtrain run RECIPE                every stage, from text to the report
  dtrain predict RECIPE --input new.txt
                                   ask the best student about new text

To read on:
  dtrain help first-steps          where to begin; `dtrain help` lists all pages
  dtrain -h                        every command"""
# Commands that are not stages: their help and their arguments.
COMMANDS: dict[str, tuple[str, tuple[Option, ...]]] = {
    "run": (
        "every stage in order, starting `accelerate launch` itself",
        (
            *_RECIPE,
            option("--stages", help=f"only these, comma-separated (of {','.join(run_names())})"),
            option("--here", action="store_true", help="run inside this process or launch, start nothing"),
            option("--group", metavar="K/N", help="of the students, only group K (from 0) of N"),
            option("--machines", type=int, default=1, help="how many run this same command together"),
            option("--machine-rank", type=int, default=0, help="which of them this is, from 0"),
            option("--rendezvous", metavar="HOST:PORT", help="the first machine; 8 ports from PORT are used"),
        ),
    ),
    "submit": (
        "every stage in order as SLURM jobs that wait for each other",
        (
            *_RECIPE,
            option("--partition", default="", help="default: the cluster's"),
            option("--nodes", type=int, default=1, help="for finetune and precompute (default: 1)"),
            option("--gpus", type=int, default=0, help="a node (default: 0)"),
            option("--cpus", type=int, default=4, help="a node (default: 4)"),
            option("--groups", type=int, default=1, help="of students, a job each (default: 1)"),
            option("--time", default="04:00:00", help="of a job; a longer stage is requeued (default: 04:00:00)"),
            option("--requeues", type=int, default=5, help="of one job at most (default: 5)"),
            option("--dry-run", action="store_true", help="print the sbatch commands; nothing is written"),
            option("--local", action="store_true", help="run the same plan here, without SLURM"),
        ),
    ),
    "check": (
        "validate the recipe and its data, say what they come to, train nothing",
        (
            *_RECIPE,
            option("--resolved", action="store_true", help="print the recipe with every default"),
            option("--store", action="store_true", help="verify every byte of the knowledge stores"),
        ),
    ),
    "plan": (
        "what training would take of GPUs that need not be here: memory, largest micro-batch, bytes sent, which config",
        (
            *_RECIPE,
            option("--gpus", type=int, default=0, help="of a node (default: those that are here, or 1)"),
            option("--nodes", type=int, default=1, help="with as many GPUs each (default: 1)"),
            option("--memory", help="of a GPU, as 80GB (default: that of those that are here, or 80GB)"),
            option("--config", help="one way alone: ddp, fsdp2, zero1, zero2, zero3, zero2_offload, zero3_offload"),
        ),
    ),
    "stages": (
        "list the stages that a recipe has, in order",
        (
            *_RECIPE,
            option(
                "--jobs",
                action="store_true",
                help="as SLURM jobs: name, stages, nodes (one or all), gpus or cpus, and array where students are shared out",
            ),
        ),
    ),
    "recipes": (
        "list the shipped recipes, or copy one here with its comments",
        (
            option("action", nargs="?", choices=("copy",), metavar="copy", help="write the recipe NAME to FILE"),
            option("name", nargs="?", metavar="NAME", help="of a shipped recipe"),
            option("file", nargs="?", metavar="FILE", help="must not exist (default: NAME.yaml)"),
        ),
    ),
    "init": (
        "write a first recipe for a data file; what is guessed from the file is a comment in it",
        (
            option("data", metavar="DATAFILE", help="labelled rows to train on; files beside it are looked at, too"),
            option("file", nargs="?", metavar="FILE", help="must not exist (default: the data's name with .yaml)"),
        ),
    ),
    "convert": (
        "a pretrained model's pytorch_model.bin as model.safetensors, old names of weights mapped",
        (
            option("source", metavar="FOLDER", help="a model's folder, or a hub model's name"),
            option("target", nargs="?", help="where a hub model goes (default: ./ and its name's end)"),
        ),
    ),
    "help": (
        "the manual, offline: its pages, one page, one recipe key or heading, or where a word is",
        (
            option("topic", nargs="?", metavar="TOPIC", help="a page, a heading, or a key as students.0.optimizer.lr"),
            option("--search", metavar="WORD", help="the lines of all pages that hold a word"),
        ),
    ),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="dtrain",
        description="Distil a large text encoder, fine-tuned over many GPUs, into small fast models.",
        epilog="Several processes: accelerate launch [--config_file accelerate_configs/X.yaml] -m dtrain STAGE RECIPE",
    )
    top.add_argument("--version", action="version", version=f"dtrain {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    known = {stage.name: (stage.help, (*_RECIPE, *stage.options)) for stage in stages()} | COMMANDS
    for name, (text, options) in known.items():
        command = commands.add_parser(name, help=text, description=text)
        for each in options:
            command.add_argument(each.flag, **each.settings)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (0 done, 2 bad input, 75 stopped on request, 1 anything else)."""
    if not (sys.argv[1:] if argv is None else argv):
        print(_WELCOME, file=sys.stderr)
        return EXIT_BAD_INPUT  # argparse's code: a script whose variable for the arguments is empty must not go on
    arguments = _parse(argv)
    # Forks that are made after the tokenizers library has started threads would each print a warning.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _command(arguments)
    except DtrainError as error:
        for problem in error.problems:
            print(f"dtrain: {problem}", file=sys.stderr)
        sys.stderr.flush()
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
    """Parse the arguments. Options may stand between overrides, which argparse alone does not accept in a subcommand."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    changes = hasattr(arguments, "overrides")
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not changes]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _help(topic: str | None, word: str | None) -> int:
    """Print a part of the manual: unchanged into a pipe; wrapped and through a pager on a terminal.

    Args:
        topic: a page, a heading or a recipe key; None: the index.
        word: a word to search for; the lines that contain it are shown in place of a topic.

    Raises:
        InputError: there is no such topic, or no page contains the word.
    """
    if word is not None:
        found = pages.search(word)
        if not found:
            raise InputError(f"help: {word!r} is on no page of the manual")
        text = "\n".join(f"- {line}" if sys.stdout.isatty() else line for line in found)
    else:
        text = pages.find(topic or pages.INDEX) or ""
        if not text:
            near = suggest(topic, pages.topics())
            raise InputError(f"help: no page, key or heading {topic!r}{near} (dtrain help --search WORD looks in all)")
    if sys.stdout.isatty():
        os.environ.setdefault("LESS", "FRX")  # as git sets it: less exits by itself if all fits on the screen
        os.environ.setdefault("LESSCHARSET", "utf-8")
        pydoc.pager(terminal.rendered(text, shutil.get_terminal_size().columns))
    else:
        print(text.rstrip())
    return EXIT_DONE


def _without_recipe(arguments: argparse.Namespace) -> int:
    """Run a command that takes no recipe."""
    if arguments.command == "help":
        return _help(arguments.topic, arguments.search)
    if arguments.command == "convert":
        from dtrain.models import convert

        return convert.run(arguments.source, arguments.target)
    if arguments.command == "init":
        from dtrain.data import first_recipe

        return first_recipe.write(arguments.data, arguments.file)
    from dtrain.recipe import copy_recipe, shipped_recipes

    if arguments.action:
        print(f"written: {copy_recipe(arguments.name, arguments.file)}")
        return EXIT_DONE
    for shipped, path in shipped_recipes().items():
        with path.open(encoding="utf-8") as file:
            print(f"{shipped:26}{file.readline().lstrip('# ').strip()}")
    return EXIT_DONE


def _command(arguments: argparse.Namespace) -> int:
    if not hasattr(arguments, "recipe"):
        return _without_recipe(arguments)
    name = arguments.command
    stage = None if name in COMMANDS else find_stage(name)
    here = "LOCAL_RANK" in os.environ or getattr(arguments, "here", False)
    try:
        place = _model_folder(stage, arguments)
        if stage is not None and place is not None:
            from dtrain.stages.runner import run_on_folder

            return run_on_folder(stage, place, _options(stage, arguments))
        machines, group = _places(arguments)
        recipe = _recipe(stage, arguments)
        if name == "stages":  # for launch/local.sh and launch/slurm/pipeline.sh
            print("\n".join(job_lines(recipe) if arguments.jobs else [stage.name for stage in of_run(recipe)]))
            return EXIT_DONE
        if name == "plan":
            return _plan(recipe, arguments)
        names, corpora = _stages(arguments, recipe), {}
        if name == "check" or not (here or recipe.kept):  # in a launch the main rank checks, once all are connected
            from dtrain.stages import check

            corpora = check.check_inputs(recipe)
    except InputError as error:
        # Every rank finds the same problems; the launcher ends the others when the first one exits.
        if not is_main_process():
            error.problems = []
            time.sleep(5)
        raise
    if name == "check":
        return check.run(recipe, corpora, store=arguments.store, resolved=arguments.resolved)
    del corpora  # the rows would take up memory for as long as the ranks run
    if name == "submit":
        from dtrain.submit import Cluster, submit

        asked = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Cluster)}
        return submit(recipe, Cluster(**asked), dry_run=arguments.dry_run, local=arguments.local)
    if stage is not None:
        for each in stage.options:
            if each.instead and getattr(arguments, each.name):
                getattr(stage.load(), each.instead)(recipe)
                return EXIT_DONE
    signals.limit_time(recipe.launch.time_limit)
    if name == "run" and not here:
        from dtrain.launch import run_everything

        words = [arguments.recipe, *arguments.overrides, *(["--group", arguments.group] if arguments.group else [])]
        own = group.own(recipe) if group else recipe
        return run_everything(own, names, words, machines, own_process=True)
    return _run_here(recipe, names, stage, group, arguments)


def _plan(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Print what training would take on GPUs. Without the recipe's data, only the size of the store stays unknown."""
    from dtrain.planning import command
    from dtrain.stages import check

    counts: dict[str, dict[str, int]] = {}
    with contextlib.suppress(InputError):
        counts = {task: corpus.counts for task, corpus in check.check_inputs(recipe).items()}
    rows = {task: sum(each.get(part, 0) for part in ("train", "transfer")) for task, each in counts.items()}
    asked = {name: getattr(arguments, name) for name in ("gpus", "nodes", "memory", "config")}
    return command.run(recipe, rows, **asked)


def _run_here(
    recipe: Recipe, names: list[str], stage: Stage | None, group: Group | None, arguments: argparse.Namespace
) -> int:
    """Run stages in this process; `stage` is the one that the command names, None for `dtrain run`."""
    from dtrain.stages.runner import run_stages

    if stage is None or stage.job is not None:
        signals.listen()
    options = _options(stage, arguments) if stage else {}
    # Where `dtrain run` started this process, or a user started it alone, the inputs were checked before.
    checked = "LOCAL_RANK" not in os.environ or getattr(arguments, "here", False)
    return run_stages(recipe, names, group=group, checked=checked, options=options)


def _options(stage: Stage, arguments: argparse.Namespace) -> dict[str, Any]:
    """The stage's own options, as keyword arguments of its `run`."""
    return {each.name: getattr(arguments, each.name) for each in stage.options if not each.instead}


def _model_folder(stage: Stage | None, arguments: argparse.Namespace) -> Path | None:
    """The model folder that was given in place of a recipe; None if it is a recipe."""
    place = Path(arguments.recipe)
    if stage is None or not stage.folders or not (place / "config.json").is_file():
        return None
    if arguments.overrides:
        raise InputError(f"{arguments.overrides[0]}: changes a recipe, and {place} is a model folder")
    return place


def _recipe(stage: Stage | None, arguments: argparse.Namespace) -> Recipe:
    """The recipe with its overrides. A stage that reads only the run folder also accepts that folder's own recipe."""
    from dtrain import kept

    if stage is None or not stage.kept:
        return kept.load_recipe(arguments.recipe, arguments.overrides)
    return kept.load_kept(arguments.recipe, arguments.overrides, models=stage.folders)


def _places(arguments: argparse.Namespace) -> tuple[Machines, Group | None]:
    """Which of several machines this `dtrain run` is, and the group of students that it trains (None: all)."""
    from dtrain.students.groups import parse_group

    if arguments.command != "run":
        return ONE_MACHINE, None
    machines = parse_machines(arguments.machines, arguments.machine_rank, arguments.rendezvous)
    if machines.rank:
        be_quiet()
    return machines, parse_group(arguments.group)


def _stages(arguments: argparse.Namespace, recipe: Recipe) -> list[str]:
    """The names of the stages to run, in order; none for commands that are not stages."""
    if arguments.command in COMMANDS and arguments.command != "run":
        return []
    if arguments.command == "run" and arguments.stages is None:
        return [stage.name for stage in of_run(recipe)]
    asked = arguments.stages.split(",") if arguments.command == "run" else [arguments.command]
    for name in asked:
        if arguments.command == "run" and name not in run_names():
            allowed = run_names()
            raise InputError(f"--stages: no stage {name!r}{suggest(name, allowed)} (allowed: {', '.join(allowed)})")
        if not find_stage(name).wanted(recipe):
            raise InputError(f"{recipe.name}: the recipe has no section `{find_stage(name).section}`")
    return [stage.name for stage in stages() if stage.name in asked]


def _launcher_ends_us(seconds: float = 2.0) -> bool:
    """Whether the launcher asks this rank to end within `seconds`, since another rank died.

    The launcher then reports which rank died, and of what.
    """
    deadline = time.monotonic() + seconds
    while not signals.received and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(signals.received)


def entry() -> None:
    """The console script."""
    signals.end_with_launcher()
    try:
        code = main()
    except Exception as error:
        # When a rank dies, the collectives of the others fail; the rank that died reports the reason.
        if any(word in str(error) for word in ("gloo", "NCCL", "ProcessGroup")):
            late = "imed out" in str(error) or "imeout" in str(error)
            what = "waited in a collective longer than launch.timeout for" if late else "lost the connection to"
            if late or not _launcher_ends_us():
                print(f"dtrain: rank {os.environ.get('RANK', '0')} {what} another rank", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        code = EXIT_FAILED
    if "torch" in sys.modules:
        from dtrain.runtime.distributed import leave

        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()

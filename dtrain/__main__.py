"""The command line. Nothing heavy is imported before it is known what to do."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import TYPE_CHECKING

from dtrain import __version__
from dtrain.errors import EXIT_DONE, EXIT_FAILED, DtrainError, InputError
from dtrain.log import is_main_process

if TYPE_CHECKING:
    from dtrain.recipe import Recipe

STAGES = ("prepare", "finetune", "precompute", "distill", "evaluate", "report")
HELP = {
    "prepare": "raw files -> normalised, split, encoded rows",
    "finetune": "train every teacher, all ranks together",
    "precompute": "every teacher's outputs, once, into the knowledge store",
    "distill": "train every student, placed over the ranks",
    "evaluate": "score every model, each row once over all ranks",
    "predict": "label new text with a trained model",
    "report": "tables, plots and one page that compares teachers and students",
    "run": "every stage in order, starting `accelerate launch` itself",
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
                choices=("jsonl", "tsv", "clue"),
                default="jsonl",
                help="what to write (default: jsonl)",
            )
    return top


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
                print(f"{name:24}{file.readline().lstrip('# ').strip()}")
        return EXIT_DONE
    launched = "LOCAL_RANK" in os.environ
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        stages = _stages(arguments)
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
    if arguments.command == "run" and not launched and not arguments.here:
        from dtrain.launch import run_everything

        return run_everything(recipe, stages, arguments.recipe, arguments.overrides)
    from dtrain import signals
    from dtrain.stages import run_stages

    if arguments.command != "predict":
        signals.listen()
    return run_stages(recipe, stages, arguments)


def _stages(arguments: argparse.Namespace) -> list[str]:
    if arguments.command != "run":
        return [arguments.command]
    if arguments.stages is None:
        return list(STAGES)
    asked = arguments.stages.split(",")
    for stage in asked:
        if stage not in STAGES:
            raise InputError(f"--stages: no stage {stage!r} (allowed: {', '.join(STAGES)})")
    return [stage for stage in STAGES if stage in asked]


def _check_inputs(recipe: Recipe) -> None:
    """What can be known to be wrong before anything is written or started."""
    from dtrain.stages.check import check_inputs

    check_inputs(recipe)


def _let_main_speak() -> None:
    import time

    time.sleep(5)


def entry() -> None:
    """The console script."""
    try:
        code = main()
    except Exception as error:
        # When a rank dies, the others' collectives fail; the reason is that rank's to tell.
        if "gloo" in str(error) or "NCCL" in str(error):
            rank = os.environ.get("RANK", "0")
            print(f"dtrain: rank {rank} lost the connection to another rank", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        code = EXIT_FAILED
    if "torch" in sys.modules:
        from dtrain.distributed import leave

        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()

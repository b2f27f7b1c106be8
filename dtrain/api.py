"""Check and run a recipe from Python, as the command line does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dtrain.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_STOPPED, DtrainError, InputError, Stopped
from dtrain.launch import run_everything
from dtrain.plan import Plan
from dtrain.recipe import Recipe, load_recipe
from dtrain.stages import of_run
from dtrain.stages.check import check_inputs

_ENDS: dict[int, type[DtrainError]] = {EXIT_BAD_INPUT: InputError, EXIT_STOPPED: Stopped}


def check(recipe: str | Path, **overrides: Any) -> Recipe:
    """Check a recipe as `dtrain check` does; what that refuses is raised. Nothing is trained or written.

    Args:
        recipe: a file, or the name of a shipped recipe.
        overrides: keys of the recipe and their new values; a key with dots is given as `**{"students.small.epochs": 3}`.

    Returns:
        The recipe with every default filled in; its fields are the recipe's keys.

    Raises:
        InputError: `error.problems` holds one line for each problem.
    """
    found = load_recipe(str(recipe), _words(overrides))
    check_inputs(found)
    return found


def run(recipe: str | Path, **overrides: Any) -> Path:
    """Run a recipe as `dtrain run` does: every stage that is not complete, in order, in processes of their own.

    Call it from the main thread: signals are passed on to those processes while they run.

    Args:
        recipe, overrides: as for `check`.

    Returns:
        The run folder.

    Raises:
        InputError: as `check`.
        Stopped: a stop was requested; a complete checkpoint was written, and the same call continues.
        DtrainError: the run failed; the reason is on stderr.
    """
    found = check(recipe, **overrides)
    stages = [stage.name for stage in of_run(found)]
    code = run_everything(found, stages, [str(recipe), *_words(overrides)])
    folder = Plan(found).folder.root
    if code != EXIT_DONE:
        raise _ENDS.get(code, DtrainError)(f"{folder}: the run ended with exit code {code}; its reason is on stderr")
    return folder


def _words(overrides: dict[str, Any]) -> list[str]:
    """The overrides as words of the command line. Values are written as JSON, which is valid YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]

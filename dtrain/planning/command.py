"""`dtrain plan`: what a recipe would need on GPUs, which this machine need not have."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from dtrain.errors import EXIT_DONE, InputError
from dtrain.log import say
from dtrain.planning.members import torch_sees
from dtrain.planning.report import Gpus, lines, unfit
from dtrain.planning.ways import GIB, WAYS
from dtrain.recipe import Recipe

DEFAULT_GB = 80.0
PRECISIONS = ("_bf16", "_fp16")
TRAINED_BY_ALL = (("pretrain", "pretrain"), ("finetune", "teachers"))  # stages, and the sections that they train


def run(
    recipe: Recipe, rows: Mapping[str, int], *, gpus: int, nodes: int, memory: str | None, config: str | None
) -> int:
    """Print the plan, and return the exit code.

    Args:
        rows: the number of rows that the store will hold, by task, where that is known.
        gpus: GPUs per node; 0: as many as this machine has, or 1 if it has none.
        memory: memory of a GPU, such as '80GB'; None: that of this machine's GPUs, or 80 GB if it has none.
        config: the only config to plan for, by its name in accelerate_configs/; None: all of them.

    Raises:
        InputError: an option has a value that is not allowed; the message names the option.
    """
    here, size = torch_sees()
    if gpus < 0 or nodes < 1:
        raise InputError(f"--gpus, --nodes: {gpus}, {nodes} (allowed: 1 and more)")
    asked = Gpus(nodes, gpus or here or 1, bytes_of(memory) if memory else size or DEFAULT_GB * GIB)
    say("\n".join(lines(recipe, asked, rows, way_of(config) if config else None)))
    return EXIT_DONE


def way_of(config: str) -> str:
    """The way to train that a config stands for: its name without the precision (`ddp_bf16` is planned as `ddp`).

    Raises:
        InputError: the config is not one of those that are planned.
    """
    name = config
    for ending in PRECISIONS:
        name = name.removesuffix(ending)
    if name not in WAYS:
        raise InputError(f"--config: {config!r} is not planned (allowed: {', '.join(WAYS)})")
    return name


def bytes_of(text: str) -> float:
    """A size such as '80GB' or '80' in bytes; a GB is 2^30 bytes, as the makers of GPUs count.

    Raises:
        InputError: the text is not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b?)?", text.strip().lower())
    if not found or not float(found[1]):
        raise InputError(f"--memory: {text!r} is no size (as 80GB)")
    return float(found[1]) * GIB


def warnings(recipe: Recipe) -> list[str]:
    """The warnings of `dtrain check`: models that will not fit into this machine's GPUs; none if it has no GPU."""
    here, size = torch_sees()
    told: list[str] = []
    for stage, section in TRAINED_BY_ALL if here else ():
        special = recipe.launch.stages.get(stage)
        processes = (special and special.processes) or recipe.launch.processes
        config = (special and special.accelerate_config) or recipe.launch.accelerate_config
        with contextlib.suppress(InputError):  # a config of the user's own is not planned
            way = way_of(config)
            told += unfit(recipe, section, Gpus(1, here if processes == "auto" else int(processes), size), way)
    return told

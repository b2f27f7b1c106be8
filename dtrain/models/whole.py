"""Loading a model of transformers from a folder that must hold every weight in its shape, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from dtrain.errors import InputError
from dtrain.quiet import quiet_transformers


def load_whole(folder: Path, auto: Any) -> PreTrainedModel:
    """Load the model of a folder by one of transformers' `Auto` classes.

    Raises:
        InputError: naming the file, and the weight that is missing, of another shape or not of the model.
    """
    weights, config = folder / "model.safetensors", folder / "config.json"
    try:
        with quiet_transformers():
            model, info = auto.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are named below, in one line
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise InputError(f"{weights}: damaged: {error}") from None
    except Exception as error:  # wrong values of a configuration fail anywhere in the constructor
        raise InputError(f"{config}: describes no model that can be loaded: {first_line(error)}") from None
    problems = {key: "is missing" for key in info["missing_keys"]}
    problems |= {key: f"is no weight of the model that {config.name} describes" for key in info["unexpected_keys"]}
    for key, found, expected in info["mismatched_keys"]:
        problems[key] = f"has shape {list(found)}, {config.name} says {list(expected)}"
    if problems:
        first = min(problems)
        raise InputError(f"{weights}: {first}: {problems[first]}")
    return model


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty, else the error's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

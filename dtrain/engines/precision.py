"""The precision of a training: the one that recipe, launcher and device agree on, and its autocast region."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Any

import torch

from dtrain.errors import InputError
from dtrain.recipe import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(asked: str, device: torch.device, where: str) -> str:
    """'fp32', 'bf16' or 'fp16' for what a recipe asks for.

    `auto` is the launcher's mixed precision; where it names none, bf16 on GPUs that compute in it, otherwise fp32.

    Args:
        asked: 'auto', 'fp32', 'bf16' or 'fp16'.
        where: the recipe's key, for messages.

    Raises:
        InputError: recipe and launcher disagree, or fp16 is asked for on a CPU.
    """
    launcher = {"no": "auto", "fp16": "fp16", "bf16": "bf16"}.get(
        os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), "auto"
    )
    if asked == "auto":
        asked = launcher
    elif launcher not in ("auto", asked):
        raise InputError(f"{where}: {asked}, but accelerate's mixed_precision is {launcher}: make them agree")
    if asked == "auto":
        # Older GPUs (V100, T4) emulate bf16, which is slower than float32, so they do not get it.
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise InputError(f"{where}: fp16 needs a GPU (found none; allowed here: fp32, bf16, auto)")
    return asked


def check_precisions(recipe: Recipe, device: torch.device) -> None:
    """Raise InputError where a teacher or student asks for a precision that launch or device do not have."""
    for kind, members in (("teachers", recipe.teachers), ("students", recipe.students)):
        for member in members:
            resolve_precision(member.precision, device, f"{kind}.{member.name}.precision")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast region of 'fp32' (none), 'bf16' or 'fp16'."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])

"""Checkpoints of a training run: complete or absent, found again by step, read without unpickling code.

    checkpoints/<kind>/<name>/step-00000120/
        state.json       position, scores so far, sha256 of every other file
        tensors.safetensors  weights, optimizer state and loss scale by parameter name, whole (`Engine.state`)
        best.safetensors     the weights of the best evaluation so far

Nothing in it depends on how the model was spread over ranks: DDP, FSDP2 and ZeRO on any number of ranks go on
from each other's. No random state is kept: every step seeds its generators from (seed, rank, step).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dtrain.log import warn
from dtrain.runfolder import file_fingerprint, publish_folder, read_json, write_json

STATE, TENSORS, BEST = "state.json", "tensors.safetensors", "best.safetensors"


def save_checkpoint(
    folder: Path,
    step: int,
    identity: str,
    state: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    best: dict[str, torch.Tensor],
) -> None:
    """Write the checkpoint of `step` and then remove all others, those of another recipe too."""
    final = folder / f"step-{step:08d}"
    with publish_folder(final) as aside:
        save_file(tensors, aside / TENSORS)
        if best:
            save_file(best, aside / BEST)
        sums = {path.name: file_fingerprint(path) for path in sorted(aside.iterdir())}
        write_json(aside / STATE, {"identity": identity, "step": step, "sha256": sums, **state})
    for other in _steps(folder):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(
    folder: Path, identity: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    """The newest whole checkpoint of this very training as (state, tensors, best), or None.

    The tensors are mapped from the file: a rank reads what it copies of them, and no more.
    A damaged one is skipped with a warning; one of another recipe, data or teacher is not used.
    """
    for path in _steps(folder):
        try:
            state = read_json(path / STATE)
            if state["identity"] != identity:
                continue
            for name, sum_ in state["sha256"].items():
                if file_fingerprint(path / name) != sum_:
                    raise ValueError(f"{name} is damaged")
            tensors = load_file(path / TENSORS)
            best = load_file(path / BEST) if (path / BEST).exists() else {}
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            warn(f"{path}: checkpoint skipped: {error}")
            continue
        return state, tensors, best
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove them all, and the folders that this leaves empty."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:2]:
        try:
            os.rmdir(parent)
        except OSError:
            return


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []

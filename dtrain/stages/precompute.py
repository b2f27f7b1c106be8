"""precompute: every teacher's outputs for training and transfer rows, once, into the knowledge store (see filling.py)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from dtrain.data import EncodedSplit, PreparedData, tokenizer_name
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError
from dtrain.knowledge.collect import model_options, pick
from dtrain.knowledge.format import Identity, StoreError, damage, new_layout, rows_of_shards
from dtrain.knowledge.kinds import find_kind
from dtrain.knowledge.verify import verify
from dtrain.knowledge.writer import StoreWriter
from dtrain.log import say
from dtrain.models import load, own, weights_fingerprint
from dtrain.models.unpadded import check_unpadded
from dtrain.plan import Plan
from dtrain.recipe import Recipe
from dtrain.runfolder import RunFolder, fingerprint, is_done, mark_done, read_json
from dtrain.runtime.distributed import World
from dtrain.stages.filling import fill, whole_model
from dtrain.tasks.prepared import PreparedTask, PreparedTasks
from dtrain.training.inference import (
    BATCH_TOKENS,
    CPU_BATCH_TOKENS,
    cast_products,
    forward_outputs,
    pack_products,
)
from dtrain.training.lockstep import load_lockstep

# Keys that transformers writes into a config and that do not affect the outputs.
_NO_EFFECT = {"_name_or_path", "transformers_version"}


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read `data/` and `teachers/`, write `knowledge/<teacher>/` for each teacher that a student learns from.

    Raises:
        DtrainError: NaN or infinity in a teacher's outputs, with the row ids; complete shards are kept.
    """
    plan = Plan(recipe)
    tasks = PreparedTasks.open(recipe, folder)
    for name in plan.needed_teachers():
        store = folder.knowledge(name)
        if world.run_on_main(partial(is_done, store, plan.knowledge(name))):
            damaged = world.run_on_main(partial(damage, store))
            if not damaged:
                say(f"knowledge of {name}: complete, nothing to do")
                continue
            for problem in damaged:
                say(f"knowledge of {name}: {problem}; what is damaged is computed again")
        of = tasks.of(next(teacher for teacher in recipe.teachers if teacher.name == name))
        _precompute(name, of, world, folder)
        if world.is_main:
            mark_done(folder.knowledge(name), plan.knowledge(name))
        world.wait_for_all(f"knowledge of {name}")


def expected_identity(teacher: str, recipe: Recipe, data: PreparedData, folder: RunFolder) -> Identity:
    """The fingerprints that a store of this teacher's outputs must have, computed from the present files.

    Args:
        recipe: the whole recipe, or that of the teacher's task.
        data: the rows of that task.
    """
    model = folder.model("teachers", teacher)
    config = {key: value for key, value in read_json(model / "config.json").items() if key not in _NO_EFFECT}
    return Identity(
        teacher=fingerprint("teacher", weights_fingerprint(load_file(model / "model.safetensors")), config),
        tokenizer=data.tokenizer_fingerprint(_tokenizer_of(teacher, recipe)),
        data=data.fingerprint,
    )


def check(recipe: Recipe, world: World) -> None:
    """Raise InputError for a precision, `unpadded` or `compile` that does not work on this machine."""
    precision = resolve_precision(recipe.knowledge.precision, world.device, "knowledge.precision")
    if recipe.knowledge.unpadded:
        check_unpadded(world.device, precision, [teacher.model.type for teacher in recipe.teachers])
    if recipe.knowledge.compile:
        check_compile(world.device)


def check_compile(device: torch.device) -> None:
    """Raise InputError if torch.compile would find no compiler: for CPUs one of C++, for GPUs one of C."""
    language, variable, usual = ("C", "CC", "gcc clang") if device.type == "cuda" else ("C++", "CXX", "g++")
    names = os.environ.get(variable, usual).split()
    if not any(shutil.which(name) for name in names):
        raise InputError(
            f"knowledge.compile: needs a {language} compiler (looked for {', '.join(names)}); "
            f"install one, name it in the environment's {variable}, or leave compile out"
        )


def check_store(teacher: str, recipe: Recipe, folder: RunFolder) -> None:
    """Verify a teacher's store.

    Raises:
        StoreError: it is damaged, made from another teacher, tokenizer or data than the present ones, made with other
            settings than the recipe's, or lacks rows.
    """
    of = PreparedTasks.open(recipe, folder).of(next(t for t in recipe.teachers if t.name == teacher))
    data = of.data
    ids = _rows(teacher, recipe, data).ids
    store = folder.knowledge(teacher)
    verify(store, expected_identity(teacher, recipe, data, folder), ids)
    if not is_done(store, Plan(recipe).knowledge(teacher)):
        raise StoreError(
            f"{store}: whole, but not what this recipe asks for (`knowledge` or a stage before has changed)"
        )


def _precompute(name: str, of: PreparedTask, world: World, folder: RunFolder) -> None:
    recipe, data = of.recipe, of.data
    part = _rows(name, recipe, data)
    settings = recipe.knowledge
    precision = resolve_precision(settings.precision, world.device, "knowledge.precision")
    source = folder.model("teachers", name)
    teacher: nn.Module
    if settings.sharded and world.size > 1:
        teacher = load_lockstep(lambda: load(source), precision, world)
    else:
        teacher = cast_products(load(source), precision, world.device)
        if not settings.compile:  # compiled programs do both by themselves
            teacher = pack_products(teacher, world.device)
            teacher = own.without_mask_checks(teacher, world.device)
    assert settings.outputs is not None
    teacher, decoding = of.kind.answering(teacher, part, settings.outputs)
    layout = new_layout(
        expected_identity(name, recipe, data, folder),
        rows=len(part),
        widths=_widths(teacher, part, settings.outputs, precision, world),
        dtype=settings.dtype,
        precision=precision,
        compiled=settings.compile,
        unpadded=settings.unpadded,
        batch_tokens=settings.batch_tokens or (CPU_BATCH_TOKENS if world.device.type == "cpu" else BATCH_TOKENS),
        shard_rows=rows_of_shards(settings.shard_rows, len(part)),
        top_k=settings.top_k,
        characters=part.vectors,
        decoding=decoding,
    )
    store = StoreWriter(folder.knowledge(name), layout, part.ids)
    fill(store, teacher, part, world, title=f"knowledge of {name}")


def _widths(
    teacher: nn.Module, part: EncodedSplit, outputs: Sequence[str], precision: str, world: World
) -> dict[str, int | tuple[int, int]]:
    """The width of each output (C, T or H), from the teacher's answer to the first row; for sequences (k, L).

    Raises:
        InputError: the teacher has no such output.
    """
    answers = forward_outputs(
        teacher,
        part,
        [np.arange(1)],
        outputs=lambda output: tuple(pick(name, output) for name in outputs),
        options=model_options(whole_model(teacher), outputs),
        device=world.device,
        precision=precision,
        threads=1,
    )
    return {
        name: values.shape[-1] if find_kind(name).scores is None else (values.shape[1], values.shape[2])
        for name, values in zip(outputs, next(answers), strict=True)
    }


def _rows(teacher: str, recipe: Recipe, data: PreparedData) -> EncodedSplit:
    """The training and transfer rows that the teacher reads, ordered by id."""
    tokenizer = _tokenizer_of(teacher, recipe)
    reads = next(member for member in recipe.teachers if member.name == teacher).model.reads_privileged
    beside: Literal["own"] | None = "own" if reads else None
    parts = [data.part(name, tokenizer, beside) for name in ("train", "transfer") if name in data.parts_read(tokenizer)]
    return parts[0] if len(parts) == 1 else EncodedSplit.concat(parts)


def _tokenizer_of(teacher: str, recipe: Recipe) -> str:
    return tokenizer_name(next(member for member in recipe.teachers if member.name == teacher))

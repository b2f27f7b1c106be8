"""The engine that a launch asks for: one process, a copy on every rank (DDP), or spread over them (FSDP2, ZeRO).

The modules of engines that spread a model are imported only when one is asked for: that of FSDP2 takes half a second,
DeepSpeed takes several and need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dtrain.engines.engine import Engine
from dtrain.engines.optim import build_optimizer, scaled_to_batch
from dtrain.engines.precision import resolve_precision
from dtrain.engines.zero_config import fill_config
from dtrain.errors import InputError
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import World


def build_model(world: World, make: Callable[[], nn.Module], *, data_parallel: bool) -> nn.Module:
    """The model that `make` builds, on the CPU; under FSDP2 all ranks but rank 0 get its structure without weights."""
    if _kind(world, data_parallel) == "fsdp2":
        from dtrain.engines.fsdp import built_once

        return built_once(world, make)
    return make()


def build_engine(world: World, model: nn.Module, spec: TrainSpec, *, data_parallel: bool, precision: str) -> Engine:
    """The engine that the launch asks for, with the optimizer of `spec`; the model is that of `build_model`.

    Memory while it is built, where P is the size of the float32 model: every rank holds P in host memory, under FSDP2
    rank 0 alone; ZeRO in 16 bits holds a second P there until the exact weights are in place. A device holds P under DDP,
    ZeRO-1 and ZeRO-2 (half of it in 16 bits); under FSDP2 and ZeRO-3 it holds its share of P and one whole parameter.

    Args:
        data_parallel: all ranks train this model, each on its share of a batch; otherwise this rank trains it alone.
        precision: 'fp32', 'bf16' or 'fp16'.

    Raises:
        InputError: launch and recipe disagree, or the model cannot do what the recipe asks for.
    """
    if spec.activation_checkpointing:
        _checkpoint_activations(model)
    optimizer, _ = scaled_to_batch(spec)
    kind = _kind(world, data_parallel)
    if kind == "fsdp2":
        from dtrain.engines.fsdp import FsdpEngine

        return FsdpEngine(world, model, optimizer, precision=precision, reshard=world.sharding.reshard)
    if kind == "zero":
        from dtrain.engines.zero import ZeroEngine

        config = fill_config(world.sharding, spec, world.size, precision)
        return ZeroEngine(world, model, build_optimizer(model, optimizer), precision=precision, config=config)
    return Engine(world, model, build_optimizer(model, optimizer), data_parallel=data_parallel, precision=precision)


def spread_over_ranks(model: nn.Module, world: World) -> None:
    """Shard `model` in place as FSDP2 does: every rank's device keeps a slice of each parameter."""
    from dtrain.engines.fsdp import mesh_of, spread

    spread(model, mesh_of(world))


def check_engine(world: World, spec: TrainSpec) -> None:
    """Refuse, before anything is written, a teacher about which launch and recipe disagree.

    Raises:
        InputError: naming the file and the key.
    """
    precision = resolve_precision(spec.precision, world.device, f"teachers.{spec.name}.precision")
    scaled_to_batch(spec)
    if spec.adversarial is not None and spec.adversarial.type == "pgd" and _kind(world, True) == "zero":
        # Its inner passes take gradients that DeepSpeed's engine does not know of.
        raise InputError(f"teachers.{spec.name}.adversarial.type: pgd does not run under ZeRO (use fsdp2 or ddp)")
    check_sharding(world, spec, precision)


def check_sharding(world: World, spec: TrainSpec, precision: str) -> None:
    """Raise InputError where a DeepSpeed config contradicts the recipe, naming the file and the key."""
    if _kind(world, True) == "zero":
        fill_config(world.sharding, spec, world.size, precision)


def _kind(world: World, data_parallel: bool) -> str:
    return world.sharding.kind if data_parallel and world.size > 1 else "ddp"


def _checkpoint_activations(model: nn.Module) -> None:
    """Keep the inputs of each transformer layer only, and compute the rest again in backward.

    Raises:
        InputError: for a model without such layers.
    """
    encoders = [m for m in model.modules() if getattr(m, "supports_gradient_checkpointing", False)]
    if not encoders:
        raise InputError("activation_checkpointing: the model has no transformer layers; remove it")
    encoder: Any = encoders[0]
    # transformers renames it in 5.2x and warns of the old name.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})

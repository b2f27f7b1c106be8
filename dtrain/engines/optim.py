"""Optimizers by name, their parameter groups, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from dtrain.engines.lamb import Lamb
from dtrain.errors import InputError
from dtrain.losses.objective import Objective
from dtrain.recipe.optimizers import OptimizerSpec, ScheduleSpec
from dtrain.recipe.training import TrainSpec


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, object]]:
    """Groups by rate (longest matching prefix of `modules`) and decay (none for biases, norms and other vectors).

    Names are those of the model folder, without the prefix of the objective that the model is trained in.

    Raises:
        InputError: no parameter starts with a prefix of `modules`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used = set()
    names = Objective.folder_names(model)
    named = {names[name]: parameter for name, parameter in model.named_parameters()}
    for name, parameter in named.items():
        prefixes = [p for p in spec.modules if name == p or name.startswith(p.rstrip(".") + ".")]
        prefix = max(prefixes, key=len, default=None)
        used.update(prefixes)
        if not parameter.requires_grad:
            continue
        lr = spec.lr if prefix is None else spec.modules[prefix]
        decay = spec.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    for prefix in spec.modules:
        if prefix not in used:
            tops = sorted({name.split(".")[0] for name in named})
            raise InputError(
                f"optimizer.modules: no parameter starts with {prefix!r} (the model has {', '.join(tops)})"
            )
    return [
        {"params": params, "lr": lr, "weight_decay": decay}
        for (lr, decay), params in sorted(groups.items(), key=lambda g: g[0])
    ]


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 1711.05101), LAMB (You et al. 1904.00962) or SGD with momentum."""
    groups = parameter_groups(model, spec)
    if spec.type == "adamw":
        # One pass over the memory of a parameter, its gradient and its moments, on CPUs and GPUs, plain tensors and
        # DTensors; torch's default makes a pass for each of a dozen operations.
        return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps or 1e-8, fused=True)
    if spec.type == "lamb":
        return Lamb(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps or 1e-6)
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)


def step_count(count: torch.Tensor, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> torch.Tensor:
    """A copy of a parameter's step count, a 0-d tensor, on the device where `optimizer` reads it.

    Fused kernels read it on the parameter's device, other optimizers on the CPU.
    """
    return count.to(parameter.device if optimizer.defaults.get("fused") else "cpu", copy=True)


def scaled_to_batch(spec: TrainSpec) -> tuple[OptimizerSpec, ScheduleSpec]:
    """Optimizer and schedule for the batch size at hand: `lr_scaling: sqrt` of You et al. (1904.00962, section 4).

    With k = batch_size / reference_batch, rates are multiplied by √k, and a warm-up given as a share by k (one given
    in steps stays, as k times larger batches make k times fewer steps an epoch). The paper's table 4, BERT
    pre-training with LAMB over a fixed number of epochs, is this rule from its first line on:

        batch       512      1k       2k      4k      8k      16k     32k
        10³ · lr    5/2^3    5/2^2.5  5/2^2   5/2^1.5 5/2^1   5/2^0.5 5/2^0
        warm-up     1/320    1/160    1/80    1/40    1/20    1/10    1/5

    Raises:
        InputError: the warm-up would take all of the training.
    """
    optimizer, schedule = spec.optimizer, spec.schedule
    if optimizer.lr_scaling is None:
        return optimizer, schedule
    assert spec.batch_size is not None
    assert optimizer.reference_batch is not None
    k = spec.batch_size / optimizer.reference_batch
    modules = {prefix: lr * math.sqrt(k) for prefix, lr in optimizer.modules.items()}
    optimizer = optimizer.model_copy(update={"lr": optimizer.lr * math.sqrt(k), "modules": modules})
    if schedule.warmup < 1:
        if schedule.warmup * k >= 1:
            raise InputError(
                f"schedule.warmup: {schedule.warmup:g} of the steps becomes {schedule.warmup * k:g} at batch_size "
                f"{spec.batch_size} (reference_batch {spec.optimizer.reference_batch}); it must stay under 1"
            )
        schedule = schedule.model_copy(update={"warmup": schedule.warmup * k})
    return optimizer, schedule


def rate(spec: ScheduleSpec, total_steps: int, epochs: int) -> Callable[[int], float]:
    """The factor on every group's rate at step 0, 1, ..., total_steps - 1; never 0 while training goes on.

    Warm-up rises to the decay's first value; 'exponential' multiplies the rate by `decay` after each epoch, counted
    from the first step (warm-up included).
    """
    warmup = round(spec.warmup * total_steps) if spec.warmup < 1 else int(spec.warmup)

    def factor(step: int) -> float:
        ramp = (step + 1) / warmup if step < warmup else 1.0
        if spec.type == "exponential":
            return ramp * max(spec.floor, spec.decay ** (step * epochs // total_steps))
        if step < warmup:
            return ramp
        left = (total_steps - step) / max(1, total_steps - warmup)
        if spec.type == "constant":
            shape = 1.0
        elif spec.type == "linear":
            shape = left
        elif spec.type == "polynomial":
            shape = max(0.0, left) ** spec.power
        else:
            shape = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
        return spec.floor + (1.0 - spec.floor) * max(0.0, shape)

    return factor

"""Optimizers by name, their parameter groups, and the rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from dtrain.errors import InputError
from dtrain.recipe.schema import OptimizerSpec, ScheduleSpec
from dtrain.training.lamb import Lamb


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, object]]:
    """Groups by rate (longest matching prefix of `modules`) and decay (none for biases, norms and other vectors).

    Raises:
        InputError: for a prefix that no parameter starts with.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefixes = [p for p in spec.modules if name == p or name.startswith(p.rstrip(".") + ".")]
        prefix = max(prefixes, key=len, default=None)
        used.update(prefixes)
        lr = spec.lr if prefix is None else spec.modules[prefix]
        decay = spec.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    for prefix in spec.modules:
        if prefix not in used:
            tops = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
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
        return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps or 1e-8)
    if spec.type == "lamb":
        return Lamb(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps or 1e-6)
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)


def rate(spec: ScheduleSpec, total_steps: int) -> Callable[[int], float]:
    """The factor on every group's rate at step 0, 1, ..., total_steps - 1; never 0 while training goes on."""
    warmup = round(spec.warmup * total_steps) if spec.warmup < 1 else int(spec.warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        left = (total_steps - step) / max(1, total_steps - warmup)
        if spec.type == "constant":
            shape = 1.0
        elif spec.type == "linear":
            shape = left
        else:
            shape = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
        return spec.floor + (1.0 - spec.floor) * max(0.0, shape)

    return factor

"""Weights of losses that go on from one phase of a student to the next."""

from __future__ import annotations

from torch import nn

from dtrain.losses.objective import LossSum


def lasting_losses(losses: nn.Module) -> dict[str, nn.Module]:
    """By name within `losses`, of one task or of several, the modules whose weights go on from phase to phase."""
    return {
        f"{place}.stateful.{name}".lstrip("."): module.stateful[name]
        for place, module in losses.named_modules()
        if isinstance(module, LossSum)
        for name in module.lasting
    }

"""Weights of losses that are kept from one phase of a student to the next."""

from __future__ import annotations

from torch import nn

from dtrain.losses.objective import LossSum


def lasting_losses(losses: nn.Module) -> dict[str, nn.Module]:
    """The modules whose weights are kept from phase to phase, by their names in `losses` (of one task or several)."""
    return {
        f"{place}.stateful.{name}".lstrip("."): module.stateful[name]
        for place, module in losses.named_modules()
        if isinstance(module, LossSum)
        for name in module.lasting
    }

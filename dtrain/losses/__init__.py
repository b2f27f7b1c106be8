"""Losses by name, from every module in this folder; importing this does not import torch."""

import importlib
import pkgutil

from dtrain.losses.registry import coerce_parameters, find_loss, loss_names
from dtrain.losses.weighted_sum import LossSum, build_losses

__all__ = [
    "LossSum",
    "build_losses",
    "coerce_parameters",
    "find_loss",
    "loss_names",
]

NO_LOSSES = {"min_norm", "ramp", "weighting"}  # these compute weights, with torch at module level

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in NO_LOSSES:
        importlib.import_module(f"{__name__}.{_module.name}")

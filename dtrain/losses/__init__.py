"""Losses by name, from every module in this folder; importing this does not import torch (see registry.py)."""

import importlib
import pkgutil

from dtrain.losses.registry import coerce_parameters, find_loss, loss_names

__all__ = ["coerce_parameters", "find_loss", "loss_names"]

NO_LOSSES = {
    "adversary",
    "lasting",
    "min_norm",
    "objective",
    "ramp",
    "several",
    "variational",
    "weighting",
    "width_maps",
}  # these compute with losses, and import torch at module level

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in NO_LOSSES:
        importlib.import_module(f"{__name__}.{_module.name}")

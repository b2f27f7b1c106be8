"""Losses by name; importing this does not import torch."""

from dtrain.losses import exits as exits
from dtrain.losses import features as features
from dtrain.losses import outputs as outputs
from dtrain.losses import tagging as tagging
from dtrain.losses.registry import check_loss, coerce_parameters, find_loss, loss_names
from dtrain.losses.weighted_sum import LossSum, build_losses

__all__ = [
    "LossSum",
    "build_losses",
    "check_loss",
    "coerce_parameters",
    "find_loss",
    "loss_names",
]

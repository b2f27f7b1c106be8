"""Losses by name; importing this does not import torch."""

from dtrain.losses import outputs as outputs
from dtrain.losses.registry import check_loss, coerce_parameters, loss_names, needs_teachers
from dtrain.losses.weighted_sum import LossSum, build_losses

__all__ = [
    "LossSum",
    "build_losses",
    "check_loss",
    "coerce_parameters",
    "loss_names",
    "needs_teachers",
]

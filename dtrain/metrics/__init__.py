"""Scores from counts: counts add up over batches and ranks, so scores do not depend on how rows were split."""

from dtrain.metrics.classification import Confusion, per_class, scores

__all__ = ["Confusion", "per_class", "scores"]

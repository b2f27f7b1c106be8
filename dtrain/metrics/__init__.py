"""Scores from counts, which are summed over batches and ranks, so that scores do not depend on how rows were split."""

from dtrain.metrics.classification import Confusion, per_class, scores
from dtrain.metrics.entities import Entities, count_entities, entities, entity_scores, per_type, spans

__all__ = [
    "Confusion",
    "Entities",
    "count_entities",
    "entities",
    "entity_scores",
    "per_class",
    "per_type",
    "scores",
    "spans",
]

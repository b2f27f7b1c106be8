"""Scores of a classifier on a part: each labelled row counts exactly once, and the scores do not depend on the ranks.

fixed batches of the part -> batch i to rank i % size -> counts and per-row losses -> summed over ranks -> scores
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data import EncodedSplit
from dtrain.errors import DtrainError
from dtrain.metrics import Confusion, scores
from dtrain.tasks.texts import by_row
from dtrain.training.workers import Workers


def evaluate_part(model: nn.Module, part: EncodedSplit, workers: Workers, classes: int) -> dict[str, float]:
    """The scores of `dtrain.metrics.scores` and `loss`, the mean cross-entropy of the labelled rows.

    Raises:
        DtrainError: a row was not scored exactly once.
        ValueError: the part has no labelled row.
    """
    confusion, loss = count_part(model, part, workers, classes)
    return {**scores(confusion), "loss": loss}


def count_part(model: nn.Module, part: EncodedSplit, workers: Workers, classes: int) -> tuple[Confusion, float]:
    """The confusion matrix of a part's labelled rows, and their mean cross-entropy.

    Raises:
        DtrainError: a row was not scored exactly once.
    """
    pairs: list[tuple[np.ndarray, Tensor]] = []

    def losses(logits: Tensor, rows: np.ndarray) -> Tensor:
        gold = torch.from_numpy(part.labels[rows]).to(logits.device, non_blocking=True)
        pairs.append((part.labels[rows], logits.argmax(dim=1)))
        return functional.cross_entropy(logits.double(), gold, reduction="none")[:, None]

    by_loss = by_row(model, part, workers, losses)
    confusion = Confusion.empty(classes)
    if pairs:
        gold = torch.from_numpy(np.concatenate([gold for gold, _ in pairs]))
        confusion = Confusion.of(gold, torch.cat([predicted for _, predicted in pairs]), classes)
    confusion = Confusion(workers.sum(confusion.counts))
    labelled = int((part.labels >= 0).sum())
    if confusion.rows != labelled:
        raise DtrainError(f"{confusion.rows} rows were counted, but {labelled} are labelled")
    # fsum rounds once, whatever the order: the mean has the same last digit for any number of ranks.
    return confusion, math.fsum(by_loss[:, 0].tolist()) / max(labelled, 1)

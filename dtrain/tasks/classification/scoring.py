"""Scores of a model on a part: each labelled row exactly once, equal for any number of ranks.

fixed batches of the part -> batch i to rank i % size -> counts and per-row losses -> added over ranks -> scores
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dtrain.data import EncodedSplit
from dtrain.errors import DtrainError
from dtrain.metrics import Confusion, scores
from dtrain.tasks.base import check_coverage
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
    """The confusion matrix of a part's labelled rows and their mean cross-entropy; as `evaluate_part`."""
    labelled = np.flatnonzero(part.labels >= 0)
    done, predicted, losses = [labelled[:0]], [], []
    for rows, (logits,) in workers.outputs(model, part, lambda output: (output.logits.float(),), labelled):
        gold = torch.from_numpy(part.labels[rows]).to(logits.device, non_blocking=True)
        done.append(rows)
        predicted.append(logits.argmax(dim=1))
        losses.append(functional.cross_entropy(logits.double(), gold, reduction="none"))

    mine = np.concatenate(done)
    confusion = Confusion.empty(classes)
    by_row = torch.zeros(len(part), 2, dtype=torch.float64)  # loss, and how often the row was scored
    if len(mine):
        confusion = Confusion.of(torch.from_numpy(part.labels[mine]), torch.cat(predicted), classes)
        scored = torch.stack([torch.cat(losses).cpu(), torch.ones(len(mine), dtype=torch.float64)], dim=1)
        by_row.index_add_(0, torch.from_numpy(mine), scored)
    confusion, by_row = Confusion(workers.sum(confusion.counts)), workers.sum(by_row)

    check_coverage(part, by_row[:, 1])
    if confusion.rows != len(labelled):
        raise DtrainError(f"{confusion.rows} rows were counted, but {len(labelled)} are labelled")
    # fsum rounds once, whatever the order: the mean has the same last digit for any number of ranks.
    return confusion, math.fsum(by_row[:, 0].tolist()) / max(len(labelled), 1)

"""Scores of a model on a part, over all ranks: each labelled row exactly once, equal for any number of ranks.

fixed batches of the part -> batch i to rank i % size -> counts and per-row losses -> added over ranks -> scores
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dtrain.data import Part, inference_batches
from dtrain.distributed import World
from dtrain.errors import DtrainError
from dtrain.metrics import Confusion, scores
from dtrain.tasks.base import check_coverage
from dtrain.training.inference import BATCH_TOKENS, forward_batches


def evaluate_part(
    model: nn.Module,
    part: Part,
    world: World,
    *,
    classes: int,
    precision: str,
    batch_tokens: int = BATCH_TOKENS,
    distributed: bool = True,
) -> dict[str, float]:
    """The scores of `dtrain.metrics.scores` and `loss`, the mean cross-entropy of the labelled rows.

    Args:
        distributed: share the rows among all ranks, each of which must call this with the same weights; otherwise
            this process scores all rows by itself.

    Raises:
        DtrainError: a row was not scored exactly once.
        ValueError: the part has no labelled row.
    """
    confusion, loss = count_part(
        model,
        part,
        world,
        classes=classes,
        precision=precision,
        batch_tokens=batch_tokens,
        distributed=distributed,
    )
    return {**scores(confusion), "loss": loss}


def count_part(
    model: nn.Module,
    part: Part,
    world: World,
    *,
    classes: int,
    precision: str,
    batch_tokens: int = BATCH_TOKENS,
    distributed: bool = True,
) -> tuple[Confusion, float]:
    """The confusion matrix of a part's labelled rows and their mean cross-entropy; arguments as `evaluate_part`."""
    labelled = np.flatnonzero(part.labels >= 0)
    batches = [labelled[batch] for batch in inference_batches(part.lengths[labelled], batch_tokens)]
    mine = batches[world.rank :: world.size] if distributed else batches
    answers = forward_batches(model, part, mine, device=world.device, precision=precision, threads=world.threads)

    predicted, losses = [], []
    for rows, logits in zip(mine, answers, strict=True):
        gold = torch.from_numpy(part.labels[rows]).to(logits.device, non_blocking=True)
        predicted.append(logits.argmax(dim=1))
        losses.append(functional.cross_entropy(logits.double(), gold, reduction="none"))

    done = np.concatenate(mine) if mine else labelled[:0]
    confusion = Confusion.empty(classes)
    by_row = torch.zeros(len(part), 2, dtype=torch.float64)  # loss, and how often the row was scored
    if len(done):
        confusion = Confusion.of(torch.from_numpy(part.labels[done]), torch.cat(predicted), classes)
        scored = torch.stack([torch.cat(losses).cpu(), torch.ones(len(done), dtype=torch.float64)], dim=1)
        by_row.index_add_(0, torch.from_numpy(done), scored)
    if distributed:
        confusion, by_row = Confusion(world.sum(confusion.counts)), world.sum(by_row)

    check_coverage(part, by_row[:, 1])
    if confusion.rows != len(labelled):
        raise DtrainError(f"{confusion.rows} rows were counted, but {len(labelled)} are labelled")
    # fsum rounds once, whatever the order: the mean has the same last digit for any number of ranks.
    return confusion, math.fsum(by_row[:, 0].tolist()) / max(len(labelled), 1)

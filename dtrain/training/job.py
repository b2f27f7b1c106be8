"""What one training consists of, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtrain.engines.engine import Engine
from dtrain.errors import DtrainError
from dtrain.recipe.training import TrainSpec
from dtrain.runfolder import fingerprint
from dtrain.runtime.stop import StopRequest
from dtrain.training.adversarial import Adversary
from dtrain.training.checkpoint import Checkpoints
from dtrain.training.feed import Feed, Rows
from dtrain.training.kept_epochs import KeepEpoch

Evaluate = Callable[[torch.nn.Module], dict[str, float]]


class Diverged(DtrainError):
    """The loss or the weights are not finite any more, or fp16 overflows without end."""


@dataclass
class Position:
    """Everything that continuing needs, besides tensors."""

    step: int = 0  # optimizer steps tried so far
    applied: int = 0  # steps that fp16 overflow did not skip; the schedule follows these
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    best_score: float | None = None
    best_loss: float | None = None  # validation loss of the same evaluation
    best_step: int = 0
    best_epoch: float = 0.0
    worse: int = 0  # evaluations since the score last rose
    skipped: int = 0  # steps in a row that fp16 overflow skipped
    rows: int = 0
    seconds: float = 0.0  # in training steps, without evaluation; of models trained side by side, this one's part
    checkpoint_seconds: float = 0.0  # that steps waited for checkpoints
    finished: bool = False  # patience is over
    running: dict[str, list[float]] = field(default_factory=dict)  # sum and count by term since the last evaluation
    unlogged: dict[str, list[float]] = field(default_factory=dict)  # the same since the last point of the curves
    communication_share: float | None = None  # of the last step that was watched, see training/communication.py
    history: list[dict[str, Any]] = field(default_factory=list)

    def advance(self, rows: int, epoch_steps: int, applied: bool) -> bool:
        """Count one step; whether it was the last of its epoch."""
        self.step += 1
        self.batch += 1
        self.rows += rows
        self.applied += applied
        self.skipped = 0 if applied else self.skipped + 1
        if self.batch < epoch_steps:
            return False
        self.epoch, self.batch = self.epoch + 1, 0
        return True


Snapshot = Callable[[dict[str, torch.Tensor], Position], None]


@dataclass(eq=False)
class TrainJob:
    """One model to train, and where.

    Attributes:
        engine: holds the objective (model and losses) and its optimizer.
        feed: what it is trained on, as batches.
        evaluate: scores the model on the validation rows.
        identity: fingerprint of all that decides the model; checkpoints of another one are not continued from.
        headline: scores in words.
        order: the seed of the order of rows; None: the spec's.
        pause: epochs after which to stop for a comparison with others.
        keep_last: the weights of the last evaluation are kept, whatever their score.
        peers: other students learn from its answers, so it can only continue from a step that all of them have.
        snapshots: what is called with the weights at the end of an epoch, on rank 0.
        keep_epoch: what is called with each epoch's number and weights on rank 0, and at the beginning with 0.
        data: where the rows come from, to say how a checkpoint differs.
        turns: after how many steps of the losses' weights alone the model makes one alone; 0: both learn in each step.
    """

    title: str
    spec: TrainSpec
    engine: Engine
    feed: Feed
    evaluate: Evaluate
    checkpoints: Path
    tensorboard: Path
    identity: str
    stop: StopRequest
    headline: Callable[[dict[str, float]], str]
    adversary: Adversary | None = None
    order: int | None = None
    pause: int | None = None
    keep_last: bool = False
    peers: bool = False
    snapshots: Mapping[int, Snapshot] = field(default_factory=dict)
    keep_epoch: KeepEpoch | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    turns: int = 0

    @property
    def rows(self) -> Rows:
        return self.feed.rows

    @property
    def units(self) -> np.ndarray:
        """What each row counts in the mean that is trained on, int [N]."""
        return self.feed.units

    def close(self) -> None:
        """Let go of the weights, the optimizer's state and the feed's thread."""
        self.feed.close()
        self.engine.close()


def checkpoint_identity(model: str, precision: str) -> str:
    """Which checkpoints a training continues from: those of the same model (its fingerprint) in the same precision."""
    return fingerprint(model, precision)


def checkpoints_of(job: TrainJob) -> Checkpoints:
    """The checkpoints of a job. Peers keep two at least: they continue from a step that all of them have."""
    identity = checkpoint_identity(job.identity, job.engine.precision)
    keep = max(job.spec.keep_checkpoints, 2 if job.peers else 1)
    section = job.spec.model_dump(mode="json") | {"precision": job.engine.precision, "data": job.data}
    return Checkpoints(job.checkpoints, identity, section, keep)

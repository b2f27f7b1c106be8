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
    """Everything that a training needs to continue, besides tensors."""

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
    seconds: float = 0.0  # in training steps, without evaluations; for models trained side by side, this one's share
    checkpoint_seconds: float = 0.0  # that training waited for checkpoints
    finished: bool = False  # patience has run out, or `stop_epoch` is reached
    running: dict[str, list[float]] = field(default_factory=dict)  # sum and count by term since the last evaluation
    unlogged: dict[str, list[float]] = field(default_factory=dict)  # the same since the last point of the curves
    communication_share: float | None = None  # of the last step that was measured, see training/communication.py
    history: list[dict[str, Any]] = field(default_factory=list)

    def advance(self, rows: int, epoch_steps: int, applied: bool) -> bool:
        """Count one step; returns whether it was the last of its epoch."""
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
    """One model to train, and the folders of its checkpoints and curves.

    Attributes:
        engine: holds the objective (model and losses) and its optimizer.
        feed: gives the training batches.
        evaluate: scores the model on the validation rows.
        identity: fingerprint of all that determines the model; checkpoints of another one are not used.
        headline: puts scores into words.
        order: the seed of the order of rows; None: the spec's.
        pause: the epoch after which training pauses, for a comparison with other models; None: it does not.
        keep_last: whether the weights of the last evaluation are kept, whatever their score.
        peers: whether other students learn from its answers; then it continues from a step that all of them have.
        snapshots: by epoch, a function that is called at its end on rank 0, with the weights and the position.
        keep_epoch: a function that is called on rank 0 with each epoch's number and weights, at the beginning with 0.
        data: settings of the data, to explain how another training's checkpoint differs.
        turns: how many steps train the weights of the losses alone before each step that trains the model alone; 0:
            every step trains both.
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
        """How much each row counts in the mean loss, int [N]; see `Feed`."""
        return self.feed.units

    def close(self) -> None:
        """Free the weights and the optimizer's state, and stop the feed's thread."""
        self.feed.close()
        self.engine.close()


def checkpoint_identity(model: str, precision: str) -> str:
    """The identity of a training's checkpoints, from its model's fingerprint and the precision it is trained in."""
    return fingerprint(model, precision)


def checkpoints_of(job: TrainJob) -> Checkpoints:
    """The checkpoints of a job. Peers keep at least two: they continue from a step that all of them have."""
    identity = checkpoint_identity(job.identity, job.engine.precision)
    keep = max(job.spec.keep_checkpoints, 2 if job.peers else 1)
    section = job.spec.model_dump(mode="json") | {"precision": job.engine.precision, "data": job.data}
    return Checkpoints(job.checkpoints, identity, section, keep)

"""A small student that the tests of training train with the real loop, stopped or spoilt where they ask for it."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch

from dtrain.data import EncodedSplit
from dtrain.engines.engine import Engine
from dtrain.engines.optim import build_optimizer
from dtrain.losses.objective import Objective, build_losses
from dtrain.models import build
from dtrain.recipe.architectures.classifiers import BiLSTMSpec
from dtrain.recipe.training import LossSpec, Student
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.tasks.classification.scoring import evaluate_part
from dtrain.tasks.classification.task import Classification
from dtrain.training.adversarial import Adversary
from dtrain.training.feed import Feed
from dtrain.training.job import Position, TrainJob
from dtrain.training.loop import fit
from dtrain.training.workers import Workers


class StopAt(StopRequest):
    """A request to stop that is visible at the n-th check."""

    def __init__(self, questions: int | None) -> None:
        self.questions = questions
        self.reason = "test"

    def anywhere(self) -> bool:
        if self.questions is None:
            return False
        self.questions -= 1
        return self.questions < 0


def spec(**changes: Any) -> Student:
    values = {"name": "s", "model": {"type": "bilstm", "embedding": 6, "hidden": 5, "dropout": 0.3}, "seed": 3,
              "epochs": 4, "batch_size": 7, "optimizer": {"lr": 0.01}, "metric": "accuracy"}  # fmt: skip
    return Student.model_validate(values | changes)


class AskedAt(StopRequest):
    """A request to stop that reaches this rank during the n-th step."""

    def __init__(self, world: World, step: int) -> None:
        self.world, self.step, self.questions = world, step, 0
        self.reason = "test"

    def here(self) -> bool:
        self.questions += 1
        return self.questions > self.step


def train(
    world: World,
    rows: EncodedSplit,
    folder: Path,
    student: Student,
    stop_at: int | None = None,
    spoil_at: int | None = None,
    data_parallel: StopRequest | None = None,
) -> tuple[dict[str, torch.Tensor], Position]:
    torch.manual_seed(student.seed or 0)
    assert isinstance(student.model, BiLSTMSpec)
    model = build(student.model, vocabulary=30, labels=["even", "odd"], pad_id=0)
    task = Classification(["even", "odd"], [])
    losses = build_losses(student.losses or [LossSpec(type="cross_entropy")])
    objective = Objective(model, losses, task.outputs)
    engine = Engine(
        world, objective, build_optimizer(objective, student.optimizer), data_parallel=False, precision="fp32"
    )
    engine.data_parallel = data_parallel is not None  # like one of several ranks, but alone
    adversary = Adversary(student.adversarial, model) if student.adversarial else None
    calls = 0
    whole = objective.parts

    def parts(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        total, sums, counts = whole(*arguments)
        return (total * math.nan if calls == spoil_at else total), sums, counts

    objective.parts = parts  # type: ignore[method-assign]
    collate = functools.partial(task.collate, rows, needs=losses.needs)
    job = TrainJob(
        title="s", spec=student, engine=engine, feed=Feed(rows, collate, task.units(rows), device=world.device),
        headline=task.headline, adversary=adversary,
        evaluate=lambda m: evaluate_part(m, rows, Workers.of(world, "fp32", shared=False), 2),
        checkpoints=folder / "checkpoints", tensorboard=folder / "tb", identity="x", stop=data_parallel or StopAt(stop_at),
    )  # fmt: skip
    best, position, monitor = fit(job)
    monitor.close()
    return best, position

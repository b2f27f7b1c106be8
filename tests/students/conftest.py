"""Students on synthetic rows, trained alone or side by side, without a run folder around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.data import EncodedSplit
from dtrain.engines.choose import build_engine
from dtrain.losses.objective import Objective, build_losses, with_peers
from dtrain.models import build
from dtrain.recipe.training import LossSpec, Student
from dtrain.runtime.distributed import World
from dtrain.tasks.classification.scoring import evaluate_part
from dtrain.tasks.classification.task import Classification
from dtrain.teachers.sources import StoredTeacher
from dtrain.training.feed import Feed
from dtrain.training.job import TrainJob
from dtrain.training.loop import Ended, MakeSteps, fit_all, in_turn
from dtrain.training.workers import Workers

LABELS = ["even", "odd", "none"]


@pytest.fixture
def rows() -> EncodedSplit:
    """90 rows of 0 to 9 tokens, a seventh of them without a label."""
    random = np.random.default_rng(0)
    texts = [random.integers(2, 30, random.integers(0, 10)) for _ in range(90)]
    labels = [int(text[0]) % 2 if len(text) else 2 for text in texts]
    return EncodedSplit(
        ids=np.arange(90) + 500,
        labels=np.array([-1 if i % 7 == 3 else label for i, label in enumerate(labels)]),
        tokens=np.concatenate(texts).astype(np.int32),
        types=None,
        offsets=np.cumsum([0, *map(len, texts)]),
        pad_id=0,
        load_rows=lambda: pytest.fail("not needed"),
    )


class Opinions:
    """A fake knowledge store: a teacher's outputs by row id."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.table = torch.randn(1000, len(LABELS), generator=random)
        self.vectors = torch.randn(1000, 16, generator=random)  # as wide as the features of the students in `SHAPES`

    def read(self, kind: str, ids: np.ndarray) -> torch.Tensor:
        return {"logits": self.table, "features": self.vectors}[kind][ids]


class NeverStop:
    reason = "test"

    def anywhere(self) -> bool:
        return False


Train = Callable[..., dict[str, Ended]]


@pytest.fixture
def job(world: World, rows: EncodedSplit, tmp_path: Path) -> Callable[..., TrainJob]:
    def make(
        student: Student,
        folder: str = "run",
        loss: Any = None,
        stop: Any = None,
        reading: Any = None,
        widths: Any = None,
        **more: Any,
    ) -> TrainJob:
        torch.manual_seed(student.seed or 0)
        model = build(student.model, vocabulary=30, labels=LABELS, pad_id=0)
        task = Classification(LABELS, [])
        losses = build_losses(student.losses or [LossSpec(type="cross_entropy")], widths)
        stores: Any = {name: Opinions(number) for number, name in enumerate(student.teachers or [])}
        objective = Objective(model, with_peers(losses) if more.get("peers") else losses, task.ask)
        if loss:
            objective.parts = loss(objective.parts)  # type: ignore[method-assign]
        sources = {name: (StoredTeacher(store), losses.outputs_of(name)) for name, store in stores.items()}
        collate = functools.partial(task.collate, rows, needs=losses.needs)
        feed = Feed(rows, collate, task.units(rows), sources, device=world.device, reading=reading, piece="rows")
        root = tmp_path / folder / student.name
        return TrainJob(
            title=student.name, spec=student, feed=feed, headline=task.headline,
            engine=build_engine(world, objective, student, data_parallel=False, precision="fp32"),
            identity=student.name, stop=stop or NeverStop(), order=3,
            evaluate=lambda m: evaluate_part(m, rows, Workers.of(world, "fp32", shared=False), 3),
            checkpoints=root / "checkpoints", tensorboard=root / "tb", **more,
        )  # fmt: skip

    return make


@pytest.fixture
def train(job: Callable[..., TrainJob]) -> Train:
    """Train students side by side; return how each ended, by name. `jobs` are existing jobs, in place of students."""

    def run(students: list[Student], way: MakeSteps = in_turn, jobs: list[TrainJob] | None = None, **how: Any) -> Any:
        ended = {}
        for one in fit_all(jobs if jobs is not None else [job(student, **how) for student in students], way):
            if one.monitor is not None:
                one.monitor.close()
            ended[one.job.spec.name] = one
        return ended

    return run


SHAPES = {
    "textcnn": {"type": "textcnn", "embedding": 8, "filters": 8, "widths": [2, 3], "dropout": 0.0},
    "bilstm": {"type": "bilstm", "embedding": 8, "hidden": 8, "dropout": 0.0},
    "bilstm-2-max": {"type": "bilstm", "embedding": 8, "hidden": 8, "layers": 2, "pooling": "max", "dropout": 0.0},
    "bilstm-2-mean": {"type": "bilstm", "embedding": 8, "hidden": 8, "layers": 2, "pooling": "mean", "dropout": 0.0},
}


def student(name: str, shape: str = "textcnn", dropout: float = 0.0, **changes: Any) -> Student:
    values = {"name": name, "model": {**SHAPES[shape], "dropout": dropout}, "seed": 3, "epochs": 4, "batch_size": 7,
              "optimizer": {"lr": 0.01}, "metric": "accuracy", "teachers": []}  # fmt: skip
    return Student.model_validate(values | changes)


def weights_of(ended: Ended) -> dict[str, torch.Tensor]:
    """The final weights, not the best ones."""
    return {name: tensor.clone() for name, tensor in ended.job.engine.inner.state_dict().items()}


def assert_same(found: dict[str, Ended], expected: dict[str, Ended]) -> None:
    for name, one in found.items():
        for key, tensor in weights_of(one).items():
            assert torch.equal(tensor, weights_of(expected[name])[key]), (name, key)
        assert one.position.history == expected[name].position.history

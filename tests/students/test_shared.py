"""Students of a group read common batches once; CUDA streams; and a group that does not fit into memory is divided."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.data import EncodedSplit
from dtrain.data.batch import Batch
from dtrain.runtime.distributed import World
from dtrain.students.plan import TrainingGroup
from dtrain.students.train import GroupTrainer
from dtrain.students.ways import Fused, Streams
from dtrain.tasks.classification.task import Classification
from dtrain.teachers.sources import StoredTeacher, TeacherSource
from dtrain.training.feed import Feed, Reading
from dtrain.training.loop import Ended, fit_all
from dtrain.training.model_job import ModelJob, Trained
from tests.students.conftest import LABELS, Opinions, Train, assert_same, student


def test_a_batch_is_read_once(rows: EncodedSplit, job: Callable[..., Any]) -> None:
    """Two students of a group with the same rows read each batch once, and also a teacher's outputs."""
    reading = Reading(torch.device("cpu"), batches=2)
    terms = [{"type": "cross_entropy"}, {"type": "soft_targets"}]
    feeds = [job(student(name, teachers=["t"], losses=terms), reading=reading).feed for name in "ab"]
    for index in (np.array([3, 4]), np.array([5]), np.array([3, 4]), np.array([3, 4])):
        for feed in feeds:
            batch = feed.batch(index)
            for name, tensor in batch.inputs.items():
                assert torch.equal(tensor, rows.collate(index)[name])
            assert torch.equal(batch.targets["labels"], torch.from_numpy(rows.labels[index]).clamp(min=0))
            assert torch.equal(batch.teachers["t"]["logits"], Opinions(0).read("logits", rows.ids[index]))
    assert reading.reads == 4  # two batches, each its rows and its teacher's outputs
    for index in (np.array([7]), np.array([8]), np.array([3, 4])):
        feeds[0].batch(index)
    assert reading.reads == 10  # the first batch is no longer kept, and is read again
    reading.close()


def test_what_is_read_ahead_is_not_read_again(rows: EncodedSplit, job: Callable[..., Any]) -> None:
    feed = job(student("a")).feed
    feed.read_ahead([np.array([1, 2]), np.array([3])])
    assert feed._reading.reads == 2
    assert torch.equal(feed.batch(np.array([3])).inputs["input_ids"], rows.collate(np.array([3]))["input_ids"])
    assert feed._reading.reads == 2
    feed.close()


class Beside(TeacherSource):
    """A fake online teacher: it computes its outputs from the batch itself, and counts its passes."""

    def __init__(self) -> None:
        self.passes = 0

    def outputs(self, batch: Batch, kinds: Sequence[str]) -> dict[str, torch.Tensor]:
        self.passes += 1
        return {kind: torch.ones(len(batch), len(LABELS)) * batch.inputs["attention_mask"].sum() for kind in kinds}


def test_a_teacher_beside_the_student_sees_the_very_batch(rows: EncodedSplit, world: World) -> None:
    task, source = Classification(LABELS, []), Beside()
    stored = StoredTeacher(Opinions(0))  # type: ignore[arg-type]
    feed = Feed(
        rows,
        functools.partial(task.collate, rows, needs={"logits"}),
        task.units(rows),
        {"online": (source, ["logits"]), "stored": (stored, ["logits"]), "unused": (Beside(), [])},
        device=world.device,
    )
    index = np.array([4, 5, 6])
    feed.read_ahead([index])
    assert source.passes == 0  # only outputs that depend on row ids alone are read ahead
    batch = feed.batch(index)
    assert source.passes == 1 and list(batch.teachers) == ["online", "stored"]
    assert (batch.teachers["online"]["logits"] == float(rows.lengths[index].sum())).all()
    assert torch.equal(batch.teachers["stored"]["logits"], Opinions(0).read("logits", rows.ids[index]))
    feed.close()


def test_streams_compute_the_same(train: Train) -> None:
    issued: list[int] = []

    @contextlib.contextmanager
    def region(number: int) -> Iterator[None]:
        issued.append(number)
        yield

    students = [student("a", dropout=0.3, epochs=1), student("b", "bilstm", seed=4, epochs=1)]
    found = train(students, Streams(torch.device("cpu"), region))
    assert issued == [0, 1] * 13
    expected = train(students, folder="alone")
    for name, one in found.items():
        assert all(torch.equal(tensor, expected[name].best[key]) for key, tensor in one.best.items())


class Cramped(GroupTrainer):
    """Has memory for two students at a time, and ends one of them before it runs out of memory."""

    def __init__(self) -> None:
        self.tried: list[list[str]] = []

    def _job(self, student: Any, *rest: Any) -> ModelJob:
        nowhere: Any = None
        return ModelJob(student.name, "", student, student.name, nowhere, nowhere, nowhere, nowhere)

    def _way(self, group: Any) -> Any:
        return None

    def _side_by_side(self, students: Any, way: Any, pause: Any) -> Iterator[Trained]:
        self.tried.append([s.name for s in students])
        yield Trained(self._job(students[0]), metrics={})
        if len(students) > 2 or students[0].name == "huge":
            raise torch.OutOfMemoryError("no more")
        for one in students[1:]:
            yield Trained(self._job(one), metrics={})


def test_out_of_memory_cuts_a_group_in_two() -> None:
    trainer = Cramped()
    group = TrainingGroup(tuple(student(name) for name in "abcdef"), "fused", "", 1.0)
    assert [trained.job.spec.name for trained in trainer.train(group)] == list("abcdef")
    assert trainer.tried == [list("abcdef"), list("bcd"), list("cd"), list("ef")] or trainer.tried[0] == list("abcdef")
    assert all(len(tried) <= 3 for tried in trainer.tried[1:])


def test_one_that_fits_nowhere_is_its_own_failure() -> None:
    class Never(Cramped):
        def _side_by_side(self, students: Any, way: Any, pause: Any) -> Iterator[Trained]:
            if any(s.name == "huge" for s in students):
                raise torch.OutOfMemoryError("no more")
            yield from super()._side_by_side(students, way, pause)

    group = TrainingGroup(tuple(student(name) for name in ("a", "huge", "b")), "fused", "", 1.0)
    ended = {trained.job.spec.name: trained.error for trained in Never().train(group)}
    assert ended.keys() == {"a", "huge", "b"}
    assert "out of memory" in str(ended["huge"])
    assert ended["a"] is None and ended["b"] is None


class _FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise ValueError("no gradient of it")


class OnJobs(GroupTrainer):
    """Trains made-up jobs, with their checkpoints; the loss of `bad` fails the whole stack from a third of the way on."""

    def __init__(self, job: Callable[..., Any], memory: bool) -> None:
        self.job, self.memory = job, memory
        self.ended: dict[str, Ended] = {}
        self.starts: list[dict[str, int]] = []  # the step from which each goes on, by part

    def _job(self, student: Any, *rest: Any) -> ModelJob:
        nowhere: Any = None
        return ModelJob(student.name, "", student, student.name, nowhere, nowhere, nowhere, nowhere)

    def _side_by_side(self, students: Any, way: Any, pause: Any) -> Iterator[Trained]:
        self.starts.append({})

        def spoil(own: Any) -> Any:
            def loss(*arguments: Any) -> Any:
                total, *rest = own(*arguments)
                late = arguments[2] > 1 / 3
                if late and self.memory and len(students) > 1:
                    raise torch.OutOfMemoryError("no more")
                return _FailsInBackward.apply(total) if late and not self.memory else total, *rest

            return loss

        def watched(name: str) -> Any:
            def wrap(own: Any) -> Any:
                def loss(*arguments: Any) -> Any:
                    self.starts[-1].setdefault(name, round(arguments[2] * 52))
                    return own(*arguments)

                return spoil(loss) if name == "bad" else loss

            return wrap

        for one in fit_all([self.job(s, folder="split", loss=watched(s.name)) for s in students], way):
            if one.monitor is not None:
                one.monitor.close()
            self.ended[one.job.spec.name] = one
            yield Trained(self._job(one.job.spec), metrics={}, error=one.error)


@pytest.mark.parametrize("memory", [True, False])
def test_what_fails_a_stack_is_traced_to_one_student(train: Train, job: Any, memory: bool) -> None:
    """A kernel runs out of memory, or the common backward pass fails; the parts of the stack continue from their
    checkpoints.
    """
    students = [student(n, seed=i, dropout=0.3) for i, n in enumerate(("a", "b", "bad", "c"))]
    trainer = OnJobs(job, memory)
    errors = {t.job.spec.name: t.error for t in trainer.train(TrainingGroup(tuple(students), "fused", "", 1.0))}
    assert errors.keys() == {"a", "b", "bad", "c"}
    assert {name for name, error in errors.items() if error} == (set() if memory else {"bad"})
    assert memory or "no gradient of it" in str(errors["bad"])
    assert [sorted(start) for start in trainer.starts] == [
        ["a", "b", "bad", "c"],
        ["a", "b"],
        ["bad", "c"],
        ["bad"],
        ["c"],
    ]
    assert all(step == 13 for start in trainer.starts[1:] for step in start.values())
    well = [one for one in students if not errors[one.name]]
    undisturbed = train(well, Fused(), folder="undisturbed")
    assert_same({one.name: trainer.ended[one.name] for one in well}, undisturbed)

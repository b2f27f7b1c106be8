"""Seconds a step of K students beside one online teacher, against K runs one after another.

    OMP_NUM_THREADS=1 python tests/benchmarks/online_teacher.py [--students 1 2 4 8] [--steps 12] [--rounds 3]

A BERT teacher of 6 layers of 256 (4 heads) in eval mode, and BERT students of 2 layers of the same width that compare
hidden states, attention scores and logits with it: synthetic rows of 12 to 32 tokens, batches of 16, AdamW. Seconds are
those of the processor, so that other work on the machine counts little; of several rounds in which all ways take turns,
the least. With t a pass of the teacher and s a student's own step, K students should take (t + K s) / K (t + s) of the
time of K runs; `share` is that over what was measured, 1 where nothing is lost.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtrain.data import EncodedSplit
from dtrain.engines.choose import build_engine
from dtrain.losses.layers import Shapes
from dtrain.losses.objective import Objective, build_losses
from dtrain.models import build
from dtrain.models.inside import shape_of
from dtrain.recipe.training import LossSpec, Student
from dtrain.runtime.distributed import connect
from dtrain.tasks.classification.task import Classification
from dtrain.teachers.online import OnlineTeacher
from dtrain.training.feed import Feed, Reading
from dtrain.training.job import TrainJob
from dtrain.training.loop import in_turn
from dtrain.training.state import TrainState

CLASSES, VOCABULARY, BATCH, BATCHES = 15, 2000, 16, 40
SHAPE = {"type": "bert", "hidden": 256, "heads": 4}
TERMS = [{"type": "hidden_mse"}, {"type": "attention_mse"}, {"type": "soft_targets"}]


def rows() -> EncodedSplit:
    random = np.random.default_rng(0)
    lengths = random.integers(12, 33, BATCHES * BATCH)
    return EncodedSplit(
        ids=np.arange(len(lengths)), labels=random.integers(0, CLASSES, len(lengths)),
        tokens=random.integers(4, VOCABULARY, lengths.sum()).astype(np.int32), types=None,
        offsets=np.concatenate([[0], lengths.cumsum()]), pad_id=0, load_rows=list,
    )  # fmt: skip


class Bench:
    """Students that are stepped a few times, alone or beside each other."""

    def __init__(self) -> None:
        self.world, self.rows = connect(), rows()
        torch.set_num_threads(1)
        self.task = Classification([str(c) for c in range(CLASSES)], [])
        self.folder = Path(tempfile.mkdtemp())
        torch.manual_seed(0)
        spec = Student.model_validate({"name": "t", "model": {**SHAPE, "layers": 6}})
        self.teacher = build(spec.model, vocabulary=VOCABULARY, labels=self.task.labels, pad_id=0).eval()
        self.teacher.requires_grad_(False)

    def source(self) -> OnlineTeacher:
        return OnlineTeacher(self.teacher, self.world.device, "fp32")

    def student(self, number: int, source: OnlineTeacher, reading: Reading | None) -> TrainState:
        values = {
            "name": f"s{number}",
            "model": {**SHAPE, "layers": 2},
            "seed": number,
            "batch_size": BATCH,
            "epochs": 99,
        }
        spec = Student.model_validate({**values, "metric": "accuracy"})
        torch.manual_seed(number)
        model = build(spec.model, vocabulary=VOCABULARY, labels=self.task.labels, pad_id=0)
        shape, theirs = shape_of(model), shape_of(self.teacher)
        assert theirs is not None
        losses = build_losses([LossSpec.model_validate(term) for term in TERMS], {}, Shapes(shape, {"t": theirs}))
        engine = build_engine(
            self.world, Objective(model, losses, self.task.ask), spec, data_parallel=False, precision="fp32"
        )
        feed = Feed(
            self.rows,
            functools.partial(self.task.collate, self.rows, needs=losses.needs),
            self.task.units(self.rows),
            online={"t": (source, losses.outputs_of("t"))},
            device=self.world.device,
            reading=reading,
        )
        return TrainState(TrainJob(
            title=spec.name, spec=spec, engine=engine, feed=feed, order=0, identity="x",
            evaluate=lambda model: {}, stop=None, headline=str,  # type: ignore[arg-type]
            checkpoints=self.folder / spec.name, tensorboard=self.folder / f"tb{number}",
        ))  # fmt: skip

    def seconds(self, students: int, steps: int, source: OnlineTeacher) -> float:
        """Of the processor, a step of all students side by side."""
        reading = Reading(self.world.device, 4)
        runs = [self.student(number, source, reading) for number in range(students)]

        def go(count: int) -> None:
            for _ in range(count):
                in_turn(runs)
                for run in runs:
                    run.position.advance(BATCH, BATCHES, True)
                    run.log._pending.clear()

        go(2)
        source.passes = 0
        found = timed(lambda: go(steps)) / steps
        assert source.passes in (0, steps), "one pass a step"
        for run in runs:
            run.close()
            run.job.close()
        reading.close()
        return found


class Known(OnlineTeacher):
    """The same answers for every batch of a shape, for what a student takes by itself."""

    def outputs(self, batch: Any, kinds: Any) -> Any:
        shape = tuple(batch.inputs["input_ids"].shape)
        answers = self.__dict__.setdefault("answers", {})
        if shape not in answers:
            self.expect(kinds)
            answers[shape] = self._compute(batch)
            self.passes = 0
        return answers[shape]


def timed(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    bench = Bench()
    known = Known(bench.teacher, bench.world.device, "fp32")
    alone, own, beside = [], [], {count: list[float]() for count in asked.students}
    for _ in range(asked.rounds):
        alone.append(bench.seconds(1, asked.steps, bench.source()))
        own.append(bench.seconds(1, asked.steps, known))
        for count, found in beside.items():
            found.append(bench.seconds(count, asked.steps, bench.source()))
    single, student = min(alone), min(own)
    teacher = single - student
    print(
        f"{torch.get_num_threads()} thread(s): a student's step {student:.3f} s, a pass of its teacher {teacher:.3f} s"
    )
    print("| students | s a step, side by side | one after another | of that | ideal | share |")
    print("|---|---|---|---|---|---|")
    for count, found in beside.items():
        together, apart = min(found), count * single
        ideal = (teacher + count * student) / apart
        print(
            f"| {count} | {together:.3f} | {apart:.3f} | {together / apart:.2f} | {ideal:.2f} "
            f"| {ideal / (together / apart):.2f} |"
        )


if __name__ == "__main__":
    main()

"""Student-steps a second of K students: one after another, stacked, K processes; and two ranks of one thread each.

    python tests/benchmarks/many_students.py [--quick] [--device cuda] [--members 1 2 4 8 16 32] [--output results.json]

Synthetic rows at the sizes of TNEWS (15 classes, 4,000 characters, 22 tokens a row): TextCNN 300 x 256 x (2, 3, 4) and
BiLSTM 512 / 512, batches of 128 and 16. Every measurement runs in processes of its own, which begin together when all
are ready, and reports its peak memory. Ways take turns, so that another user of the machine slows all of them. More than
16 processes are not started.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES, VOCABULARY, TOKENS = 15, 4000, 22
WAYS = ("one after another", "stacked", "streams", "processes", "two ranks")
SHAPES: dict[str, dict[str, Any]] = {
    "textcnn": {"type": "textcnn", "embedding": 300, "filters": 256, "widths": [2, 3, 4]},
    "bilstm": {"type": "bilstm", "embedding": 512, "hidden": 512, "dropout": 0.5},
}
SMALL = {
    "textcnn": {"type": "textcnn", "embedding": 64, "filters": 32, "widths": [2, 3, 4]},
    "bilstm": {"type": "bilstm", "embedding": 64, "hidden": 64, "dropout": 0.5},
}


def measure(shape: dict[str, Any], batch: int, members: int, way: str, steps: int, device: str, gate: str) -> dict:
    """In this process: `members` students, each alone or all stacked; begins when there is a file `gate`."""
    import numpy as np
    import torch

    from dtrain.data import EncodedSplit
    from dtrain.engines.choose import build_engine
    from dtrain.engines.precision import resolve_precision
    from dtrain.losses.objective import Objective, build_losses
    from dtrain.models import build
    from dtrain.recipe.training import LossSpec, Student
    from dtrain.runtime.distributed import connect
    from dtrain.students.ways import Fused, Streams
    from dtrain.tasks.classification.task import Classification
    from dtrain.training.feed import Feed, Reading
    from dtrain.training.job import TrainJob
    from dtrain.training.loop import in_turn
    from dtrain.training.state import TrainState

    world = connect()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    random = np.random.default_rng(0)
    lengths = random.integers(12, TOKENS + 11, 40 * batch)
    rows = EncodedSplit(
        ids=np.arange(len(lengths)), labels=random.integers(0, CLASSES, len(lengths)),
        tokens=random.integers(4, VOCABULARY, lengths.sum()).astype(np.int32), types=None,
        offsets=np.concatenate([[0], lengths.cumsum()]), pad_id=0, load_rows=lambda: None,
    )  # fmt: skip
    reading = Reading(world.device)
    task = Classification([str(c) for c in range(CLASSES)], [])
    precision = resolve_precision("auto", world.device, "precision")
    folder = Path(tempfile.mkdtemp())

    def student(number: int) -> TrainState:
        spec = Student.model_validate(
            {
                "name": f"s{number}",
                "model": shape,
                "seed": number,
                "batch_size": batch,
                "metric": "accuracy",
                "epochs": 99,
            }
        )
        torch.manual_seed(number)
        model = build(spec.model, vocabulary=VOCABULARY, labels=task.labels, pad_id=0)
        losses = build_losses([LossSpec(type="cross_entropy")])
        objective = Objective(model, losses, task.outputs)
        engine = build_engine(world, objective, spec, data_parallel=False, precision=precision)
        collate = functools.partial(task.collate, rows, needs=losses.needs)
        feed = Feed(rows, collate, task.units(rows), device=world.device, reading=reading)
        return TrainState(TrainJob(
            title=spec.name, spec=spec, engine=engine, feed=feed, order=0, identity="x",
            evaluate=lambda model: {}, stop=None, headline=str,  # type: ignore[arg-type]
            checkpoints=folder / spec.name, tensorboard=folder / f"tb{number}",
        ))  # fmt: skip

    def settle() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    # Whoever is alone trains to the end before the next is built; only steps are timed.
    together: dict[str, Any] = {"stacked": Fused, "streams": functools.partial(Streams, world.device)}
    groups = [range(members)] if way in together else [[number] for number in range(members)]
    seconds = 0.0
    for group in groups:
        runs = [student(number) for number in group]
        make_steps = together.get(way, lambda: in_turn)()

        def steps_of(runs: list[TrainState], count: int, make_steps: Any) -> float:
            settle()
            begin = time.perf_counter()
            for _ in range(count):
                make_steps(runs)
                for run in runs:
                    run.position.advance(batch, 40, True)
                    run.log._pending.clear()
            settle()
            return time.perf_counter() - begin

        steps_of(runs, 2, make_steps)
        if group is groups[0]:
            Path(f"{gate}-{os.getpid()}").touch()
            while not Path(gate).exists():
                time.sleep(0.01)
        seconds += steps_of(runs, steps, make_steps)
        for run in runs:
            run.close()
        del runs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    return {"steps": steps * members, "seconds": seconds, "memory_gib": peak}


def spread(shape: dict[str, Any], batch: int, counts: list[int], way: str, threads: int, steps: int, how: Any) -> dict:
    """One process for each of `counts` members, all at the same time; steps a second of all together."""
    command = [sys.executable, __file__, "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder) / "gate"
        processes = []
        for count in counts:
            job = json.dumps([shape, batch, count, way, steps, how.device, str(gate)])
            processes.append(subprocess.Popen([*command, job], env=environment, stdout=subprocess.PIPE, text=True))
        while len(list(gate.parent.iterdir())) < len(processes):
            if any(process.poll() for process in processes):
                raise SystemExit(f"{way}: a process failed")
            time.sleep(0.05)
        gate.touch()
        answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {
        "steps_per_second": sum(a["steps"] for a in answers) / max(a["seconds"] for a in answers),
        "memory_gib": sum(a["memory_gib"] for a in answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="small shapes, K of 2: does it run, not how fast it is")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 16])
    parser.add_argument("--steps", type=int, default=64, help="student-steps of a measurement, of all members together")
    parser.add_argument("--ways", nargs="+", default=[way for way in WAYS if way != "streams"], choices=WAYS)
    parser.add_argument("--output", type=Path)
    how = parser.parse_args()
    if how.worker:
        print(json.dumps(measure(*json.loads(how.worker))))
        return
    if how.quick:
        how.members, how.batches, how.steps = [2], [16], 4
    cores = len(os.sched_getaffinity(0))
    found = []
    for name in how.models:
        shape = (SMALL if how.quick else SHAPES)[name]
        for batch in how.batches:
            for members in how.members:
                steps = max(2, how.steps // members)
                ways = {
                    "one after another": ([members], "alone", cores),
                    "stacked": ([members], "stacked", cores),
                    "streams": ([members], "streams", cores),
                    "processes": ([1] * members, "alone", max(1, cores // members)),
                    "two ranks": ([(members + 1) // 2, members // 2 or 1], "alone", 1),
                }
                line: dict[str, Any] = {"model": name, "batch": batch, "members": members}
                for way, (counts, steps_by, threads) in ways.items():
                    if way not in how.ways or (way == "two ranks" and members == 1) or len(counts) > 16:
                        continue
                    line[way] = spread(shape, batch, counts, steps_by, threads, steps, how)
                found.append(line)
                base = line[how.ways[0]]["steps_per_second"]
                shown = (
                    f"{w} {line[w]['steps_per_second'] / base:.2f}x" for w in ways if w in line and w != how.ways[0]
                )
                memory = ", ".join(f"{line[w]['memory_gib']:.1f}" for w in ways if w in line)
                told = f"{name} batch {batch} K {members}: {base:.1f} student-steps/s {how.ways[0]}; {', '.join(shown)}"
                print(f"{told}; GiB {memory}", flush=True)
    if how.output:
        how.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

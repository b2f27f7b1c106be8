"""One process with two cores against two ranks of one core each: training together, filling a store, students.

    PYTHONPATH=. python tests/benchmarks/ranks_speed.py [--part together store students] [--rounds 5] [--seconds 2]

What `dtrain/ranks.py` chooses rests on these figures. The processes of both ways are started once and wait; each round
has one way work for a few seconds and then the other, so that what else the machine does meets both alike. Rates are
medians of the rounds, a ratio is the median of the rounds' own.

    together    steps a second of a classifier of BERT's shape that both ranks train (DDP over gloo), 16 rows of 6 to 44
                tokens a step, AdamW and clipping
    store       rows a second into a knowledge store, of a BERT of 4 layers of 512, shards as large as by default
    students    steps a second over all students: one at a time with two threads, or two side by side with one thread each
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import EncodedSplit
from dtrain.engines.choose import build_engine
from dtrain.knowledge.format import Identity, new_layout, rows_of_shards
from dtrain.knowledge.writer import StoreWriter
from dtrain.models import build
from dtrain.models import own as own_modules
from dtrain.recipe.architectures.classifiers import BiLSTMSpec, TextCNNSpec
from dtrain.recipe.architectures.transformers import BertSpec
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import World, connect, leave
from dtrain.stages.filling import fill
from dtrain.training.bernoulli import fast_bernoulli
from dtrain.training.inference import CPU_BATCH_TOKENS, cast_products, pack_products

VOCABULARY, LABELS = 21128, [str(number) for number in range(15)]
CELLS: dict[str, list[dict[str, Any]]] = {
    "together": [
        {"size": size, "rows": rows, "precision": precision}
        for size in ("tiny", "small", "base")
        for rows in (16, 128)
        for precision in ("fp32", "bf16")
        if (size, rows) != ("base", 128)
    ],
    "store": [
        {"rows": rows, "precision": precision}
        for precision in ("fp32", "bf16")
        for rows in (100, 400, 1000, 4000, 10000)
        if (precision, rows) != ("fp32", 10000)
    ],
    "students": [
        {"model": model, "width": width, "rows": rows}
        for model, width in (("bilstm", 64), ("bilstm", 512), ("textcnn", 300))
        for rows in (16, 128)
    ],
}


def texts(count: int, seed: int = 0) -> EncodedSplit:
    """Encoded rows as long as news titles."""
    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.normal(25, 7, count), 6, 44).astype(np.int64)
    return EncodedSplit(
        ids=np.arange(count),
        labels=np.zeros(count, dtype=np.int64),
        tokens=draw.integers(1, VOCABULARY, lengths.sum()).astype(np.int32),
        types=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        pad_id=0,
        load_rows=lambda: None,  # type: ignore[arg-type, return-value]
    )


def model_of(cell: dict[str, Any]) -> nn.Module:
    spec: Any
    if "size" in cell:
        spec = BertSpec.model_validate({"type": "bert", "size": cell["size"]})
    elif cell["model"] == "bilstm":
        spec = BiLSTMSpec.model_validate({"type": "bilstm", "embedding": cell["width"], "hidden": cell["width"]})
    else:
        spec = TextCNNSpec.model_validate({"type": "textcnn", "embedding": cell["width"]})
    torch.manual_seed(0)
    return build(spec, vocabulary=VOCABULARY if "size" in cell else 3000, labels=LABELS, pad_id=0, max_length=64)


def steps(world: World, cell: dict[str, Any], together: bool) -> Callable[[float], float]:
    """A function that makes steps for so many seconds and gives how many it made in one."""
    spec = TrainSpec.model_validate({"name": "t", "model": {"type": "textcnn"}, "optimizer": {"lr": 1e-5}})
    model = model_of(cell)
    engine = build_engine(world, model, spec, data_parallel=together, precision=cell.get("precision", "fp32"))
    own_modules.without_mask_checks(engine.module, world.device)
    engine.model.train()
    ranks = engine.ranks
    part = texts(20 * cell["rows"], seed=1)
    part = EncodedSplit(**{**vars(part), "tokens": part.tokens % 3000}) if "model" in cell else part
    batches = [part.collate(rows) for rows in np.arange(len(part)).reshape(20, -1)[:, engine.rank :: ranks]]
    targets = torch.zeros(cell["rows"] // ranks, dtype=torch.long)
    made = 0

    def step() -> None:
        nonlocal made
        with engine.synchronise_when(True):
            with engine.autocast():
                logits = engine.model(**batches[made % 20]).logits
            engine.backward(nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / cell["rows"])
        engine.step(1.0)
        made += 1

    def measure(seconds: float) -> float:
        first, begin = made, time.perf_counter()
        while True:
            with fast_bernoulli():  # as dtrain's training loop does; 30 microseconds
                step()
            over = time.perf_counter() - begin > seconds and made - first >= 3
            if world.any(over) if together else over:
                return (made - first) / (time.perf_counter() - begin)

    for _ in range(3):
        step()
    return measure


def stores(world: World, cell: dict[str, Any]) -> Callable[[float], float]:
    part = texts(cell["rows"])
    torch.manual_seed(0)
    teacher = cast_products(model_of({"size": "small"}), cell["precision"], world.device)
    teacher = own_modules.without_mask_checks(pack_products(teacher, world.device), world.device)
    layout = new_layout(
        Identity(teacher="a" * 32, tokenizer="b" * 32, data="c" * 32),
        rows=len(part),
        widths={"logits": len(LABELS)},
        dtype="float16",
        precision=cell["precision"],
        batch_tokens=CPU_BATCH_TOKENS,
        shard_rows=rows_of_shards("auto", len(part)),
    )

    def measure(seconds: float) -> float:
        del seconds
        with tempfile.TemporaryDirectory() as own:
            folder = world.gather_objects(own)[0]
            world.wait_for_all("benchmark")
            begin = time.perf_counter()
            # Ranks divide the shards of one title among them; a folder's name is the same on all and never there twice.
            fill(StoreWriter(Path(folder) / "store", layout, part.ids), teacher, part, world, title=f"store {folder}")
            took = time.perf_counter() - begin
            world.wait_for_all("benchmark")
        return len(part) / took

    return measure


def work(part: str, number: int) -> None:
    """A rank: a line of stdin is a cell to make ready, or the seconds to work; it answers with a line."""
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a stage says is no answer
    world = connect()
    assert number == world.rank
    measure: Callable[[float], float] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, dict):
            measure = stores(world, asked) if part == "store" else steps(world, asked, together=part == "together")
            answer = 0.0
        else:
            assert measure is not None
            answer = measure(asked)
        talk.write(f"{answer}\n")
        talk.flush()
    leave(0)


class Way:
    """The processes of one way, which work when they are asked."""

    def __init__(self, part: str, ranks: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = []
        for rank in range(ranks):
            several = {**common, "RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
            environment = os.environ | {name: str(value) for name, value in several.items()}
            environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, __file__, "--part", part, "--rank", str(rank)]
            self.processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )

    def ask(self, what: Any) -> list[float]:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
        found = [process.stdout.readline() for process in self.processes]  # type: ignore[union-attr]
        if not all(found):
            raise SystemExit("a process ended early; run it by hand with --part and --rank 0 to see why")
        return [float(line) for line in found]

    def close(self) -> None:
        for process in self.processes:
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cells", type=int, nargs="+", help="of each part only these, counted from 0")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        work(options.part[0], options.rank)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    for part in options.part:
        print(
            f"\n| {part} | one process, two cores | two ranks | two / one: median (least to most) |\n|---|---|---|---|"
        )
        ways = Way(part, 1), Way(part, 2)
        for cell in [CELLS[part][number] for number in options.cells or range(len(CELLS[part]))]:
            for way in ways:
                way.ask(cell)
            one, two = [], []
            for _ in range(options.rounds):
                one.append(ways[0].ask(options.seconds)[0])
                both = ways[1].ask(options.seconds)
                two.append(sum(both) if part == "students" else min(both))
            ratios = sorted(b / a for a, b in zip(one, two, strict=True))
            name = ", ".join(str(value) for value in cell.values())
            told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {name} | {statistics.median(one):.2f} | {statistics.median(two):.2f} | {told} |", flush=True)
        for way in ways:
            way.close()


if __name__ == "__main__":
    main()

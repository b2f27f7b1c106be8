"""Training steps of a BERT with masks of dropout drawn by torch, and drawn as dtrain does it, on a CPU.

    PYTHONPATH=. python tests/benchmarks/dropout_speed.py [--pairs 10] [--batch 16 128] [--threads 1 2]
        [--precision fp32 bf16] [--layers 4] [--hidden 512] [--wall]

Rows of 6 to 44 random tokens (as news titles), cross-entropy, clipping, fused AdamW, padding left out, as dtrain trains.
Each pair is one step with torch's numbers and one with dtrain's, on the same batch and in turn, so that what else the
machine does meets both alike. Prints how many numbers a step draws, its milliseconds (medians), and the median of the
pairs' ratios with its quartiles; before that, nanoseconds a number of `bernoulli_` alone.

Times are CPU time of the calling thread. With two threads it does what is serial and its half of the rest, and sleeps while
it waits for the other: on an idle machine that is the wall time, and on a busy one it leaves out the others' work.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else waiting for another thread is CPU time

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.models import build
from dtrain.models import own as own_modules
from dtrain.models.packing import skip_padding
from dtrain.recipe.architectures.transformers import BertSpec
from dtrain.runtime.allocator import keep_freed_memory, keep_large_blocks
from dtrain.training import bernoulli
from dtrain.training.bernoulli import draw

VOCABULARY, LABELS = 21128, [str(number) for number in range(15)]
WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "torch": contextlib.nullcontext,
    "dtrain": bernoulli.fast_bernoulli,
}
Step = Callable[[int], None]


def batches(rows: int, count: int = 8) -> list[dict[str, Tensor]]:
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        lengths = torch.from_numpy(np.clip(random.normal(25, 7, rows), 6, 44).astype(np.int64))
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        ids = torch.from_numpy(random.integers(1, VOCABULARY, tuple(mask.shape))) * mask
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def step_of(asked: argparse.Namespace, rows: int, precision: str) -> Step:
    """One training step on the n-th batch."""
    shape = {"layers": asked.layers, "hidden": asked.hidden, "heads": asked.hidden // 64}
    spec = BertSpec.model_validate({"type": "bert", "size": "small", **shape})
    torch.manual_seed(0)
    model = build(spec, vocabulary=VOCABULARY, labels=LABELS, pad_id=0, max_length=64).train()
    device = torch.device("cpu")
    skip_padding(own_modules.without_mask_checks(model, device), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    some, targets = batches(rows), torch.arange(rows) % len(LABELS)

    def step(number: int) -> None:
        torch.default_generator.manual_seed(number)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(**some[number % len(some)]).logits
        nn.functional.cross_entropy(logits.float(), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    begin = clock()
    work()
    return clock() - begin


def numbers_of(step: Step) -> int:
    """How many random numbers a step draws."""
    drawn = 0

    def counting(count: int, p: float, generator: torch.Generator | None) -> Tensor:
        nonlocal drawn
        drawn += count
        return draw(count, p, generator)

    with mock.patch.object(bernoulli, "draw", counting), bernoulli.fast_bernoulli():
        step(0)
    return drawn


def numbers_alone(threads: int) -> None:
    torch.set_num_threads(threads)
    for shape in [(16, 512), (16, 32, 512), (128, 32, 512)]:
        values = torch.empty(shape)
        told = []
        for way in WAYS.values():
            with way():
                took = statistics.median(seconds(functools.partial(values.bernoulli_, 0.9)) for _ in range(30))
            told.append(1e9 * took / values.numel())
        size = " x ".join(str(size) for size in shape)
        print(f"| {threads} | {size} | {told[0]:.2f} | {told[1]:.2f} | {told[0] / told[1]:.1f} |", flush=True)


def steps(asked: argparse.Namespace, threads: int, rows: int, precision: str) -> None:
    torch.set_num_threads(threads)
    step = step_of(asked, rows, precision)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    drawn = numbers_of(step)
    for number in range(-1, asked.pairs):
        for name, way in list(WAYS.items())[:: 1 if number % 2 else -1]:  # either of them first, in turn
            with way():
                torch.empty(1).bernoulli_(0.9)  # what the first call costs is no part of a step
                took = seconds(
                    functools.partial(step, number + 1), time.perf_counter if asked.wall else time.thread_time
                )
                if number >= 0:
                    found[name].append(took)
    ratios = [one / two for one, two in zip(*found.values(), strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    times = " | ".join(f"{1000 * statistics.median(times):.1f}" for times in found.values())
    print(
        f"| {rows}, {precision} | {threads} | {drawn / 1e6:.1f} M | {times} | {middle:.3f} ({low:.3f} to {high:.3f}) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--wall", action="store_true", help="wall time of steps, for an idle machine")
    asked = parser.parse_args()
    keep_freed_memory()
    with keep_large_blocks():
        print("| threads | numbers | torch, ns each | dtrain, ns each | ratio |\n|---|---|---:|---:|---:|")
        for threads in asked.threads:
            numbers_alone(threads)
        print("\n| rows | threads | numbers | torch, ms | dtrain, ms | ratio (quartiles) |")
        print("|---|---|---:|---:|---:|---:|")
        for rows in asked.batch:
            for precision in asked.precision:
                for threads in asked.threads:
                    steps(asked, threads, rows, precision)


if __name__ == "__main__":
    main()

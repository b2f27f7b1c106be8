"""A training step of a transformer that multiplies padding, and one that does not, in turn on one thread of a CPU.

    PYTHONPATH=. python tests/benchmarks/padding_speed.py m3e-small TNEWS_FOLDER [--rounds 5] [--steps 8] [--batch 16]

Titles in the order of the file, AdamW (fused) and clipping. Prints milliseconds of the process's own time a step, in float32
and in bf16, the ratio with its least and most over the rounds, and how far loss and gradients of a first step lie apart. Then
the share of matrix products in a step, as torch's profiler sees it, and what it costs to take this way for texts without padding.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dtrain.models import packing
from dtrain.models.packing import skip_padding

LABELS = 15
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm"}
Way = tuple[Any, torch.optim.Optimizer]


def batches(asked: argparse.Namespace, count: int) -> list[dict[str, Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(asked.encoder)
    with (asked.folder / "train.json").open(encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["sentence"] for _ in range(count * asked.batch)]
    return [
        dict(tokenizer(texts[begin : begin + asked.batch], padding=True, return_tensors="pt"))
        for begin in range(0, len(texts), asked.batch)
    ]


def loss_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    labels = torch.arange(len(inputs["input_ids"])) % LABELS
    found: Tensor = model(**inputs, labels=labels).loss
    return found


def gradients(model: Any, inputs: dict[str, Tensor]) -> tuple[float, Tensor]:
    torch.manual_seed(1)
    loss = loss_of(model, inputs)
    loss.backward()
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return loss.item(), found


def seconds(model: Any, optimizer: torch.optim.Optimizer, some: list[dict[str, Tensor]], precision: str) -> float:
    begin = time.process_time()
    for inputs in some:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - begin) / len(some)


def share_of_products(way: Way, some: list[dict[str, Tensor]], precision: str) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        seconds(*way, some, precision)
    times = {event.key: event.self_cpu_time_total for event in watched.key_averages()}
    return sum(times.get(name, 0.0) for name in PRODUCTS) / sum(times.values())


def rounds_of(
    ways: list[Way], found: list[dict[str, Tensor]], asked: argparse.Namespace, precision: str
) -> list[list[float]]:
    """Seconds a step, by round and way."""
    for way in ways:
        seconds(*way, found[:1], precision)
    return [
        [seconds(*way, found[number * asked.steps : (number + 1) * asked.steps], precision) for way in ways]
        for number in range(asked.rounds)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("folder", type=Path, metavar="TNEWS_FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    torch.manual_seed(0)
    padded = AutoModelForSequenceClassification.from_pretrained(asked.encoder, num_labels=LABELS).train()
    packed = skip_padding(copy.deepcopy(padded), torch.device("cpu"))
    found = batches(asked, asked.rounds * asked.steps)
    tokens = sum(int(inputs["attention_mask"].sum()) for inputs in found)
    print(f"{tokens:,} tokens in {sum(inputs['input_ids'].numel() for inputs in found):,} places")
    (loss, own), (other, theirs) = gradients(packed, found[0]), gradients(padded, found[0])
    print(f"loss {loss:.7f} and {other:.7f}; gradients apart by {float((own - theirs).norm() / theirs.norm()):.1e}")
    ways = [(each, torch.optim.AdamW(each.parameters(), lr=1e-5, fused=True)) for each in (padded, packed)]
    print("\n| precision | with padding, ms | without, ms | ratio (least to most) |\n|---|---:|---:|---:|")
    for precision in ("fp32", "bf16"):
        rounds = rounds_of(ways, found, asked, precision)
        ratios = [one / two for one, two in rounds]
        times = " | ".join(f"{1000 * statistics.median(times):.0f}" for times in zip(*rounds, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {precision} | {times} | {spread} |", flush=True)
    for precision in ("fp32", "bf16"):
        shares = [share_of_products(way, found[: asked.steps], precision) for way in ways]
        print(f"\nproducts of a step in {precision}: {shares[0]:.0%} with padding, {shares[1]:.0%} without")
    packing.WORTH = 1.0  # also where nothing is saved
    whole = [{name: value[:, :16] for name, value in inputs.items()} for inputs in found]
    full = [{**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])} for inputs in whole]
    ratios = [two / one for one, two in rounds_of(ways, full, asked, "fp32")]
    print(
        f"\nwithout any padding, fp32: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) of the time"
    )


if __name__ == "__main__":
    main()

"""A training step on one CPU thread, with freed memory kept (dtrain/allocator.py) and given back.

    python tests/benchmarks/allocator_speed.py [--rounds 5] [--steps 12]

A NEZHA of the recipe `pretrain_small` (4 layers of 192, bf16), 32 rows of 64 tokens, masked language modelling; a process
each, in turn. Prints tokens per second of the thread's own time, page faults a step, and the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional

from dtrain.models.masked_lm import MaskedLM
from dtrain.models.nezha import NezhaConfig, NezhaForMaskedLM
from dtrain.runtime.allocator import keep_freed_memory

ROWS, LENGTH, VOCABULARY = 32, 64, 8000


def measure(steps: int, keep: bool) -> dict[str, float]:
    if keep:
        assert keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = NezhaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = MaskedLM(NezhaForMaskedLM(config)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(5, VOCABULARY, (ROWS, LENGTH))
    places = torch.arange(0, ROWS * LENGTH, 5)
    pieces = torch.arange(LENGTH).div(24, rounding_mode="floor").expand(ROWS, LENGTH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(ids, places, pieces)
        functional.cross_entropy(scores.float(), ids.flatten()[places]).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    began, faults = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    passed = time.thread_time() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"tokens_per_second": round(steps * ROWS * LENGTH / passed), "faults_a_step": round(faults / steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--measure", choices=["kept", "freed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.steps, options.measure == "kept")))
        return
    found: dict[str, list[float]] = {"freed": [], "kept": []}
    for _ in range(options.rounds):
        for how, rates in found.items():
            command = [sys.executable, __file__, "--steps", str(options.steps), "--measure", how]
            result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(how, result, flush=True)
            rates.append(result["tokens_per_second"])
    freed, kept = (statistics.median(found[how]) for how in ("freed", "kept"))
    print(f"kept / freed: {kept / freed:.2f} (medians {kept:,.0f} and {freed:,.0f} tokens a second)")


if __name__ == "__main__":
    main()

"""Measurements on one GPU, each printed as a line of JSON: `python -m tests.gpu.figures step|nezha|lstm [--quick]`.

    step    a BERT-large's whole training step: tokens/s, share of the listed and of the measured rate of matrix products,
            peak memory against what `dtrain plan` says
    nezha   a NEZHA-base's forward and backward pass against a BERT-base's, 128 and 512 tokens
    lstm    a BiLSTM's forward and backward pass in float32, bf16 and float16

`--quick` uses tiny models, to check that it runs and not how fast.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.engines.optim import build_optimizer
from dtrain.engines.precision import autocast
from dtrain.engines.speed import listed_peak, matmul_rate, model_flops
from dtrain.models import build, own
from dtrain.planning.trial import transformer_activations, transformer_shape
from dtrain.planning.ways import GIB, memory
from dtrain.recipe.architectures.classifiers import BiLSTMSpec
from dtrain.recipe.architectures.transformers import BertSpec, NezhaSpec
from dtrain.recipe.optimizers import OptimizerSpec
from tests.gpu.here import DEVICE, ON_GPU

device = torch.device(DEVICE)
LABELS = ["a", "b", "c"]
WORDS = 21128


def seconds(work: Callable[[], object], rounds: int, warm: int = 3) -> float:
    """The seconds of one call."""
    for _ in range(warm):
        work()
    if ON_GPU:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(rounds):
        work()
    if ON_GPU:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / rounds


def pass_of(model: nn.Module, ids: Tensor, precision: str) -> Callable[[], None]:
    """Returns a function that runs a forward and a backward pass."""
    mask = torch.ones_like(ids)
    labels = torch.zeros(len(ids), dtype=torch.long, device=ids.device)

    def work() -> None:
        with autocast(precision, ids.device):
            logits = model(input_ids=ids, attention_mask=mask).logits
        functional.cross_entropy(logits.float(), labels).backward()

    return work


def step(quick: bool) -> dict[str, Any]:
    size, rows, length, rounds = ("tiny", 4, 32, 2) if quick else ("large", 64, 128, 20)
    spec = BertSpec.model_validate({"type": "bert", "size": size})
    torch.manual_seed(0)
    model = build(spec, vocabulary=WORDS, labels=LABELS, pad_id=0, max_length=512).to(device)
    own.without_mask_checks(model, device)
    optimizer = build_optimizer(model, OptimizerSpec(lr=1e-5))
    ids = torch.randint(1, WORDS, (rows, length), device=device)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    both = pass_of(model, ids, "bf16")

    def work() -> None:
        both()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    took = seconds(work, rounds)
    per_token, per_pair = model_flops(model)
    flops = rows * length * (per_token + per_pair * length) / took
    listed = listed_peak(torch.cuda.get_device_name(device)) if ON_GPU else None
    config: dict[str, Any] = {**model.config.to_dict(), "vocab_size": WORDS}  # type: ignore[union-attr,operator]
    activations = transformer_activations(config, length, "bf16", False).of(rows)
    planned = memory("ddp", transformer_shape(config), activations, ranks=1, optimizer="adamw", precision="bf16").peak
    return {
        "tokens_per_second": rows * length / took,
        "seconds_a_step": took,
        "share_of_measured_matmuls": flops / matmul_rate(device, "bf16"),
        "share_of_listed_peak": flops / listed if listed else None,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if ON_GPU else None,
        "planned_gib": planned / GIB,
    }


def nezha(quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for length in (32,) if quick else (128, 512):
        rows = 2 if quick else 8192 // length
        times = {}
        for kind, spec in (("bert", BertSpec), ("nezha", NezhaSpec)):
            section = spec.model_validate({"type": kind, "size": "tiny" if quick else "base", "dropout": 0.0})
            model = build(section, vocabulary=WORDS, labels=LABELS, pad_id=0, max_length=512).to(device).train()
            own.without_mask_checks(model, device)
            ids = torch.randint(1, WORDS, (rows, length), device=device)
            times[kind] = seconds(pass_of(model, ids, "bf16"), 2 if quick else 20)
            del model
        found[f"{length} tokens"] = {**times, "nezha_over_bert": times["nezha"] / times["bert"]}
    return found


def lstm(quick: bool) -> dict[str, Any]:
    section = BiLSTMSpec.model_validate(
        {"type": "bilstm", "embedding": 16 if quick else 512, "hidden": 16 if quick else 512}
    )
    model = build(section, vocabulary=WORDS, labels=LABELS, pad_id=0, max_length=128).to(device).train()
    ids = torch.randint(1, WORDS, (4 if quick else 128, 24), device=device)
    kinds = ("fp32", "bf16", "fp16") if ON_GPU else ("fp32", "bf16")
    return {kind: seconds(pass_of(model, ids, kind), 2 if quick else 50) for kind in kinds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("figure", choices=("step", "nezha", "lstm"))
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    print(json.dumps({"step": step, "nezha": nezha, "lstm": lstm}[asked.figure](asked.quick)))


if __name__ == "__main__":
    main()

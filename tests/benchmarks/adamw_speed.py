"""The optimizer's step and the whole training step, with torch's fused AdamW and with its default on CPUs.

    python tests/benchmarks/adamw_speed.py [--steps 20]     one process, one thread; the thread's own time is taken

A BiLSTM of 512/512 over a vocabulary of 4,000, and a BERT of 24 M parameters (4 layers of 512, 21,128 words), on 16 rows
of 32 tokens. Steps of both alternate. Prints a line of JSON a model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from pydantic import TypeAdapter

from dtrain.engines.optim import build_optimizer, parameter_groups
from dtrain.models import build, parameter_count
from dtrain.recipe.models import ModelSpec
from dtrain.recipe.optimizers import OptimizerSpec

MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "bilstm 512/512": ({"type": "bilstm", "embedding": 512, "hidden": 512}, 4000),
    "bert 24 M": ({"type": "bert", "hidden": 512, "layers": 4, "heads": 8}, 21128),
}


def measure(section: dict[str, Any], vocabulary: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    spec: Any = TypeAdapter(ModelSpec).validate_python(section)
    model = build(spec, vocabulary=vocabulary, labels=["a", "b"], pad_id=0, max_length=64).train()
    ids, mask = torch.randint(1, vocabulary, (16, 32)), torch.ones(16, 32, dtype=torch.long)
    optimizer = OptimizerSpec(lr=1e-4)
    kinds = {
        "fused": build_optimizer(model, optimizer),
        "default": torch.optim.AdamW(parameter_groups(model, optimizer), lr=1e-4),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(steps + 2):
        for name, kind in kinds.items():
            begin = time.thread_time()
            loss = model(input_ids=ids, attention_mask=mask).logits.logsumexp(1).sum()
            loss.backward()
            middle = time.thread_time()
            kind.step()
            found[name].append((time.thread_time() - middle, time.thread_time() - begin))
            model.zero_grad()
    times = {
        name: {
            "optimizer_ms": round(1000 * statistics.median(step for step, _ in seconds[2:]), 2),
            "step_ms": round(1000 * statistics.median(whole for _, whole in seconds[2:]), 2),
        }
        for name, seconds in found.items()
    }
    ratio = {key: round(times["default"][key] / times["fused"][key], 2) for key in times["fused"]}
    return {"parameters": parameter_count(model), **times, "default/fused": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, (section, vocabulary) in MODELS.items():
        print(json.dumps({"model": name, **measure(section, vocabulary, arguments.steps)}))


if __name__ == "__main__":
    main()

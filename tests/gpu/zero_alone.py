"""ZeRO with a single process compared with a plain AdamW: `python zero_alone.py RESULT.json`, as rank 0 of 1."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from dtrain.engines.optim import build_optimizer
from dtrain.engines.zero import ZeroEngine
from dtrain.engines.zero_config import fill_config
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import connect, leave
from dtrain.runtime.sharding import read_deepspeed


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))


def main() -> None:
    world = connect()
    device = world.device
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1)
    values = {"name": "t", "model": {"type": "textcnn"}, "batch_size": 16, "optimizer": {"lr": 0.01}, "clip": 1.0}
    spec = TrainSpec.model_validate(values)
    inputs, labels = torch.randn(16, 20, device=device), torch.arange(16, device=device) % 4
    plain = made().to(device)
    optimizer, expected = build_optimizer(plain, spec.optimizer), []
    for _ in range(5):
        loss = nn.functional.cross_entropy(plain(inputs), labels)
        expected.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    results = {"plain": expected}
    for stage in ("zero1", "zero2", "zero3"):
        model = made()
        config = fill_config(read_deepspeed(f"{stage}.json"), spec, 1, "fp32")
        engine = ZeroEngine(world, model, build_optimizer(model, spec.optimizer), precision="fp32", config=config)
        found = []
        for _ in range(5):
            loss = nn.functional.cross_entropy(engine.model(inputs), labels)
            found.append(loss.item())
            engine.backward(loss)
            engine.step(1.0)
        results[stage] = found
        engine.close()
    Path(sys.argv[1]).write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main()

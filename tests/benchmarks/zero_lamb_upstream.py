"""LAMB under DeepSpeed ZeRO takes one trust ratio a flat partition: shown in a minute on two CPU processes.

    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 zero_lamb_upstream.py

Needs torch and deepspeed only; LAMB is the definition, below. With dtrain importable it also shows its LAMB, which
reads the engine's layout. See zero_lamb_upstream.md.
"""

from __future__ import annotations

import math
import os
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

STEPS, ROWS = 10, 12


class PlainLamb(torch.optim.Optimizer):
    """You et al. 2019, algorithm 2 with bias correction, for tensors as they are handed over."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["t"] += 1
                m, v, t = state["m"], state["v"], state["t"]
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                r = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + group["weight_decay"] * p
                w_norm, r_norm = p.norm(), r.norm()
                ratio = torch.where((w_norm > 0) & (r_norm > 0), w_norm / r_norm, 1.0).clamp(max=10.0)
                p.sub_(group["lr"] * ratio * r)


def make_model() -> nn.Module:
    torch.manual_seed(12)
    return nn.Sequential(
        nn.Embedding(11, 7), nn.Flatten(), nn.Linear(35, 13, bias=False), nn.Tanh(), nn.Linear(13, 3, bias=False)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randint(11, (ROWS, 5), generator=draw), torch.randint(3, (ROWS,), generator=draw)


def one_process() -> tuple[list[Tensor], list[Tensor]]:
    model = make_model()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = PlainLamb(model.parameters(), lr=0.008)
    for step in range(STEPS):
        rows, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows), labels).backward()
        optimizer.step()
    return start, [p.detach() for p in model.parameters()]


def under_zero(stage: int, exact: bool) -> list[Tensor]:
    model = make_model()
    config = {
        "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    if exact:
        from dtrain.engines.lamb import Lamb
        from dtrain.engines.zero_internals import attach_zero

        optimizer: torch.optim.Optimizer = Lamb(model.parameters(), lr=0.008)
    else:
        optimizer = PlainLamb(model.parameters(), lr=0.008)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if exact:
        attach_zero(optimizer, engine)
    for step in range(STEPS):
        rows, labels = (t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch(step))
        engine.backward(nn.functional.cross_entropy(engine(rows), labels))
        engine.step()
    params = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(params, enabled=stage == 3):
        weights = [p.detach().clone() for p in params]
    engine.destroy()
    return weights


def main() -> None:
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    deepspeed.utils.logger.setLevel("ERROR")
    start, expected = one_process()
    moved = math.sqrt(sum(float((e - s).double().square().sum()) for e, s in zip(expected, start, strict=True)))
    try:
        import dtrain.engines.lamb  # noqa: F401

        ways = (False, True)
    except ImportError:
        ways = (False,)
    for exact in ways:
        for stage in (1, 2, 3):
            weights = under_zero(stage, exact)
            error = math.sqrt(
                sum(float((w - e).double().square().sum()) for w, e in zip(weights, expected, strict=True))
            )
            if dist.get_rank() == 0:
                name = "LAMB that knows the layout" if exact else "LAMB as it is"
                print(f"{name}, stage {stage}, {dist.get_world_size()} ranks: {error / moved:.1e}", flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads abort about one interpreter shutdown in eight


if __name__ == "__main__":
    main()

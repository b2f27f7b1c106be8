"""A LAMB step against torch's fused AdamW and a naive LAMB, on parameters of the shapes of a BERT.

    python tests/benchmarks/lamb_speed.py [--layers 24] [--hidden 1024] [--steps 5]     one process, CPU or GPU
    torchrun --nproc_per_node 2 tests/benchmarks/lamb_speed.py --zero 2                  under ZeRO, against naive LAMB

Naive LAMB is the loop over tensors that most implementations are; under ZeRO it is wrong (one trust ratio a flat
partition), but it is the time that exactness is to be compared with. Steps of the optimizers alternate. On a CPU one
thread works and its own time is taken, so that neither waiting nor other work on the machine counts. Prints a line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.engines.lamb import Lamb


class NaiveLamb(torch.optim.Optimizer):
    """The definition, tensor by tensor; its trust ratio is that of whatever tensor it is handed."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                m, v, t = state["m"], state["v"], state["step"]
                m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                update = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
                update += group["weight_decay"] * p
                w, r = p.norm(), update.norm()
                ratio = torch.where((w > 0) & (r > 0), w / r, 1.0).clamp(max=10.0)
                p.sub_(group["lr"] * ratio * update)


def shapes(layers: int, hidden: int, vocabulary: int = 30522) -> list[tuple[int, ...]]:
    """Of every parameter of a BERT with a pooler."""
    norm = [(hidden,), (hidden,)]
    attention = [(hidden, hidden), (hidden,)] * 4 + norm
    feed = [(4 * hidden, hidden), (4 * hidden,), (hidden, 4 * hidden), (hidden,), *norm]
    embeddings = [(vocabulary, hidden), (512, hidden), (2, hidden), *norm]
    return [*embeddings, *(attention + feed) * layers, (hidden, hidden), (hidden,)]


def groups(params: list[Tensor]) -> list[dict[str, Any]]:
    vectors = [p for p in params if p.ndim < 2]
    return [{"params": [p for p in params if p.ndim > 1]}, {"params": vectors, "weight_decay": 0.0}]


def clock() -> float:
    """Seconds: the device's where there is a GPU, else those that this thread has worked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


def time_in_turn(steps_of: dict[str, Callable[[], Any]], steps: int, before: Callable[[str], Any]) -> dict[str, float]:
    """Median seconds of each kind of step; `before` is called with its name and not timed."""
    found: dict[str, list[float]] = {name: [] for name in steps_of}
    for _ in range(steps + 2):
        for name, step in steps_of.items():
            before(name)
            begin = clock()
            step()
            found[name].append(clock() - begin)
    return {name: statistics.median(seconds[2:]) for name, seconds in found.items()}


def alone(layers: int, hidden: int, steps: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes(layers, hidden)]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    optimizers = {
        "adamw_fused": torch.optim.AdamW(groups(params), lr=1e-4, fused=True),
        "lamb": Lamb(groups(params), lr=1e-4),
        "lamb_naive": NaiveLamb(groups(params), lr=1e-4),
    }
    times = time_in_turn({name: optimizer.step for name, optimizer in optimizers.items()}, steps, lambda name: None)
    numbers = sum(p.numel() for p in params)
    return {"parameters": numbers, "device": str(device), "seconds_a_step": times}


def under_zero(stage: int, layers: int, hidden: int, steps: int) -> dict[str, Any]:
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not torch.cuda.is_available() else "cuda")
    import deepspeed

    from dtrain.engines.zero_internals import attach_zero

    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", auto_mpi_discovery=False)
    deepspeed.utils.logger.setLevel("ERROR")

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.all = nn.ParameterList([torch.randn(shape) * 0.02 for shape in shapes(layers, hidden)])

        def forward(self) -> Tensor:
            return torch.stack([p.mean() for p in self.all]).sum()

    engines = {}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    for name, kind in (("lamb_naive", NaiveLamb), ("lamb", Lamb)):
        model = Flat()
        optimizer = kind(groups(list(model.parameters())), lr=1e-4)
        more = {"zero_allow_untested_optimizer": True}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config={**config, **more})
        if isinstance(optimizer, Lamb):
            attach_zero(optimizer, engine)
        engines[name] = engine
    steps_of = {name: engine.step for name, engine in engines.items()}
    times = time_in_turn(steps_of, steps, lambda name: engines[name].backward(engines[name]()))
    return {"stage": stage, "ranks": torch.distributed.get_world_size(), "seconds_a_step": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--zero", type=int, choices=(1, 2, 3))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.zero:
        found = under_zero(asked.zero, asked.layers, asked.hidden, asked.steps)
    else:
        found = alone(asked.layers, asked.hidden, asked.steps)
    times = found["seconds_a_step"]
    found["ratios"] = {name: round(times["lamb"] / seconds, 3) for name, seconds in times.items() if name != "lamb"}
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), **found}))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads abort about one interpreter shutdown in eight


if __name__ == "__main__":
    main()

"""One rank of the LAMB parity runs: `lamb_worker.py SETTINGS.json RESULTS.json`.

Every setting trains the same small model on the same rows, once in this launch (sharded) and once alone in this
process, and reports the distance of the final weights (in 16 bits, of their float32 masters). Sizes are odd on purpose,
so that no shard ends between two tensors.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dtrain.engines.lamb import Lamb
from dtrain.engines.shard_layout import Layout, Part, ShardingError
from dtrain.engines.zero_internals import attach_zero

STEPS, ROWS, CLIP = 10, 12, 0.05


class Tiny(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.embedding = nn.Embedding(11, 7)
        self.body = nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.Tanh(), nn.Linear(13, 17))
        self.scale = nn.Parameter(torch.rand(1, 17))  # a matrix of one row: FSDP2 gives it to one rank
        self.head = nn.Linear(17, 3, bias=False)
        self.to(dtype)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.scale * self.body(self.embedding(rows).mean(1))).float()


def batch(step: int, part: int = 0, parts: int = 1) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(step)
    rows, labels = torch.randint(11, (ROWS, 5), generator=gen), torch.randint(3, (ROWS,), generator=gen)
    return rows.chunk(parts)[part], labels.chunk(parts)[part]


def groups(model: nn.Module, how_many: int) -> list[dict[str, Any]]:
    params = list(model.parameters())
    if how_many == 1:
        return [{"params": params}]
    vectors, matrices = [p for p in params if p.dim() < 2], [p for p in params if p.dim() >= 2]
    return [
        {"params": matrices[:1], "lr": 0.004},
        {"params": vectors, "weight_decay": 0.0},
        {"params": matrices[1:]},
    ]


def build(name: str, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(params, lr=0.008, weight_decay=0.01)
    return Lamb(params, lr=0.008)


Outcome = tuple[list[Tensor], list[float]]  # weights at the end, trust ratios of the last step


def last_ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    ratios = optimizer.trust_ratios() if isinstance(optimizer, Lamb) else {}
    return sorted(ratios["values"].tolist()) if ratios else []


def alone(setting: dict[str, Any], dtype: torch.dtype) -> tuple[list[Tensor], Outcome]:
    """The initial weights and the outcome of the run in one process, with optimizer steps in float32 and weights used
    in `dtype`.
    """
    model, masters = Tiny(dtype), Tiny(dtype).float()
    start = [p.detach().clone() for p in masters.parameters()]
    optimizer = build(setting.get("optimizer", "lamb"), groups(masters, setting.get("groups", 3)))
    for step in range(STEPS):
        model.zero_grad()
        rows, labels = batch(step)
        nn.functional.cross_entropy(model(rows), labels).backward()
        for master, p in zip(masters.parameters(), model.parameters(), strict=True):
            master.grad = p.grad.float()
        if setting.get("clip"):
            nn.utils.clip_grad_norm_(masters.parameters(), CLIP)
        optimizer.step()
        model.load_state_dict(masters.state_dict())
    return start, ([p.detach() for p in masters.parameters()], last_ratios(optimizer))


def micro_batches(step: int, accumulate: int) -> list[tuple[Tensor, Tensor]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    return [batch(step, rank * accumulate + i, world * accumulate) for i in range(accumulate)]


def run_torch(setting: dict[str, Any], dtype: torch.dtype) -> Outcome:
    """Train under DDP or FSDP2."""
    model: nn.Module = Tiny(dtype)
    if setting["way"] == "ddp":
        model = DistributedDataParallel(model)
    else:
        mesh = None
        if setting.get("mesh") == "hybrid":
            mesh = dist.init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("replicate", "shard"))
        fully_shard(model.body, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = build(setting.get("optimizer", "lamb"), groups(model, setting.get("groups", 3)))
    accumulate = setting.get("accumulate", 1)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rows, labels in micro_batches(step, accumulate):
            (nn.functional.cross_entropy(model(rows), labels) / accumulate).backward()
        if setting.get("clip"):
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]
    return weights, last_ratios(optimizer)


def whole_buffer(layout: Layout) -> Layout:
    """Treat the whole partition as one tensor, as an optimizer does that does not know the layout."""
    end = max(part.start + part.length for part in layout.parts)
    return Layout((Part(torch.Size((end, 1)), 0, end),), (), None)


def this_rank_only(layout: Layout) -> Layout:
    return Layout(layout.parts)


def shifted(layout: Layout) -> Layout:
    """Move every boundary between two parts by one third of a tensor."""
    parts = list(layout.parts)
    for i in range(len(parts) - 1):
        a, b = parts[i], parts[i + 1]
        if a.length and b.length and b.start == a.start + a.length:
            move = b.length // 3
            parts[i] = Part(a.shape, a.start, a.length + move)
            parts[i + 1] = Part(b.shape, b.start + move, b.length - move)
    return Layout(tuple(parts), layout.groups, layout.device)


MUTATIONS: dict[str, Callable[[Layout], Layout]] = {
    "whole_buffer": whole_buffer,
    "this_rank_only": this_rank_only,
    "shifted": shifted,
}


def deepspeed_config(setting: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    stage = setting["stage"]
    zero: dict[str, Any] = {"stage": stage, **setting.get("zero", {})}
    if stage == 3:
        zero.setdefault("stage3_param_persistence_threshold", 0)
    config = {
        "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size() // setting.get("accumulate", 1),
        "gradient_accumulation_steps": setting.get("accumulate", 1),
        "gradient_clipping": CLIP if setting.get("clip") else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16, "initial_scale_power": 8},
    }
    return {**config, **setting.get("config", {})}


def tamper(zero: Any) -> None:
    """Imitate a version of DeepSpeed with another layout."""
    if hasattr(zero, "grad_position"):  # stage 3: a slice is at another place
        next(iter(zero.grad_position.values()))[1] += 1
    elif zero.partition_gradients:  # stage 2: a parameter is not in its buffer
        zero.bit16_groups[0][0].data = zero.bit16_groups[0][0].data.clone()
    else:  # stage 1: an attribute is missing
        del zero.real_dp_process_group


def start_engine(setting: dict[str, Any], dtype: torch.dtype) -> Any:
    model = Tiny(dtype)
    optimizer = build(setting.get("optimizer", "lamb"), groups(model, setting.get("groups", 3)))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(setting, dtype))
    if setting.get("tamper"):
        tamper(engine.optimizer)
    if isinstance(optimizer, Lamb) and setting.get("attach", True):
        attach_zero(build("lamb", groups(model, 1)) if setting.get("other") else optimizer, engine)
    if "mutation" in setting:
        for flat, layout in list(optimizer._layouts.items()):
            optimizer.attach_layout(flat, MUTATIONS[setting["mutation"]](layout))
    return engine


def run_zero(setting: dict[str, Any], dtype: torch.dtype) -> Outcome:
    """Train under ZeRO, with an optional interruption half-way."""
    engine = start_engine(setting, dtype)
    accumulate = setting.get("accumulate", 1)
    for step in range(STEPS):
        if setting.get("reload") and step == STEPS // 2:
            engine.save_checkpoint("checkpoint", tag=f"stage{setting['stage']}")
            engine.destroy()
            engine = start_engine(setting, dtype)
            engine.load_checkpoint("checkpoint", tag=f"stage{setting['stage']}")
        for rows, labels in micro_batches(step, accumulate):
            engine.backward(nn.functional.cross_entropy(engine(rows), labels))
            engine.step()
    params = list(engine.module.parameters())
    if dtype != torch.float32:
        weights = [deepspeed.utils.safe_get_full_fp32_param(p).clone() for p in params]
    else:
        with deepspeed.zero.GatheredParameters(params, enabled=setting["stage"] == 3):
            weights = [p.detach().clone() for p in params]
    ratios = last_ratios(getattr(engine.optimizer, "optimizer", engine.optimizer))
    engine.destroy()
    return weights, ratios


def measure(setting: dict[str, Any]) -> dict[str, Any]:
    """Compare the end of a run with that of the run in one process.

    `error` is ‖w − w_ref‖ / ‖w_ref − w_start‖, `ratio_error` the largest relative error of the last trust ratios;
    `refused` is the message if LAMB refused to step.
    """
    dtype = getattr(torch, setting.get("dtype", "float32"))
    start, (expected, expected_ratios) = alone(setting, dtype)
    try:
        weights, ratios = (run_zero if setting["way"] == "zero" else run_torch)(setting, dtype)
    except ShardingError as refusal:
        return {"refused": str(refusal)}
    error = sum(float((w.double() - e.double()).square().sum()) for w, e in zip(weights, expected, strict=True))
    moved = sum(float((e.double() - s.double()).square().sum()) for e, s in zip(expected, start, strict=True))
    result = {"error": math.sqrt(error / moved)}
    if len(ratios) == len(expected_ratios):
        pairs = zip(ratios, expected_ratios, strict=True)
        result["ratio_error"] = max((abs(r / e - 1) for r, e in pairs), default=0.0)
    return result


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    deepspeed.utils.logger.setLevel("ERROR")
    accelerator = deepspeed.accelerator.get_accelerator()
    accelerator.is_fp16_supported = lambda: True  # DeepSpeed refuses fp16 on CPUs, although it works there, slowly
    results = {name: measure(setting) for name, setting in settings.items()}
    if dist.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # about one interpreter shutdown in eight is aborted by gloo's threads


if __name__ == "__main__":
    main()

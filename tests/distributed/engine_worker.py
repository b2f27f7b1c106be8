"""One rank of the engine runs: `engine_worker.py SETTINGS.json RESULTS.json`.

A setting is a chain of engines that train one small model, each going on from the checkpoint of the one before:

    {"chain": ["ddp", "zero2"], "optimizer": "lamb", "steps": 5, "load": path or null, "save": path or null, ...}

The result is the loss of every global batch before its step, and the distance of the final weights from those of one
plain optimizer on whole batches. Sizes are odd on purpose, so that no shard ends between two tensors.
"""

from __future__ import annotations

import json
import math
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dtrain.engines.choose import build_engine, build_model
from dtrain.engines.engine import Engine
from dtrain.engines.optim import build_optimizer
from dtrain.models.folder import weights_fingerprint
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import World, connect, leave
from dtrain.runtime.sharding import Sharding, read_deepspeed
from dtrain.training.checkpoint import Checkpoints

ROWS = 12
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"type": "adamw", "lr": 0.004},
    "lamb": {"type": "lamb", "lr": 0.004},
    "lamb-rates": {"type": "lamb", "lr": 0.004, "modules": {"head": 0.002}},
    "lamb-slow": {"type": "lamb", "lr": 0.002},
    "sgd": {"type": "sgd", "lr": 0.05},
}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.embedding = nn.Embedding(11, 7)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.LayerNorm(7), nn.Tanh()) for _ in range(2))
        self.scale = nn.Parameter(torch.rand(1, 7))  # a matrix of one row: FSDP2 gives it to one rank
        self.head = nn.Linear(7, 3)
        self.register_buffer("seen", torch.zeros(2))
        self.poisoned = False  # one element of one gradient overflows

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.embedding(rows).mean(1)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        scale = self.scale * 1
        if self.poisoned:
            scale.register_hook(_overflow)
        return self.head(scale * hidden).float()


def _overflow(gradient: Tensor) -> Tensor:
    poisoned = gradient.clone()
    poisoned[0, 0] = math.inf
    return poisoned


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randint(11, (ROWS, 5), generator=draw), torch.randint(3, (ROWS,), generator=draw)


def spec(setting: dict[str, Any]) -> TrainSpec:
    values = {"name": "t", "model": {"type": "bilstm"}, "batch_size": ROWS, "clip": setting.get("clip")}
    accumulation = setting.get("accumulation", 1)
    optimizer = OPTIMIZERS[setting.get("optimizer", "lamb")]
    return TrainSpec.model_validate({**values, "optimizer": optimizer, "accumulation": accumulation})


def sharding(way: str, setting: dict[str, Any]) -> Sharding:
    if way in ("ddp", "fsdp2"):
        return Sharding(way)  # type: ignore[arg-type]
    read = read_deepspeed(f"ds_configs/{way}.json")
    zero = read.deepspeed["zero_optimization"]
    if zero["stage"] == 3:
        # Otherwise no parameter of so small a model would be sharded.
        zero |= {"stage3_param_persistence_threshold": 20, "sub_group_size": 60}
    zero |= setting.get("zero", {})
    return read


def start(world: World, way: str, setting: dict[str, Any]) -> Engine:
    world.sharding = sharding(way, setting)  # what the launch would have set
    model = build_model(world, Tiny, data_parallel=True)
    assert all(p.is_meta == (way == "fsdp2" and world.rank > 0) for p in model.parameters())
    engine = build_engine(world, model, spec(setting), data_parallel=True, precision=setting.get("precision", "fp32"))
    if setting.get("mutation"):
        for buffer in engine._buffers:  # type: ignore[attr-defined]
            buffer.offsets = [max(0, offset - 1) for offset in buffer.offsets]
    return engine


def train_step(engine: Engine, setting: dict[str, Any], step: int) -> tuple[float, bool]:
    """Make one step on this rank's share of the global batch; the mean loss, and whether the step was applied."""
    rows, labels = (tensor.to(engine.world.device) for tensor in batch(step))
    parts = setting.get("accumulation", 1)
    total = 0.0
    engine.module.poisoned = setting.get("overflow") == [engine.rank, step]  # type: ignore[assignment]
    shares = torch.arange(ROWS, device=rows.device)[engine.rank :: engine.ranks].chunk(parts)
    for number, share in enumerate(shares):
        with engine.synchronise_when(number == len(shares) - 1), engine.autocast():
            loss = nn.functional.cross_entropy(engine.model(rows[share]), labels[share], reduction="sum") / ROWS
        with engine.synchronise_when(number == len(shares) - 1):
            engine.backward(loss)
        total += float(loss.detach())
    norm, applied = engine.step(setting.get("clip"))
    assert not applied or torch.isfinite(norm)
    return float(engine.world.sum(torch.tensor(total, dtype=torch.float64))), applied


def run(world: World, setting: dict[str, Any]) -> dict[str, Any]:
    losses, applied, scales = [], [], []
    step, folder = setting.get("first", 0), Path(setting["folder"])
    saved = setting.get("load")
    weights: dict[str, Tensor] = {}
    norm, whole = 0.0, True
    for number, way in enumerate(setting["chain"]):
        engine = start(world, way, setting)
        if saved:
            found = Checkpoints(folder / saved, "x").newest()
            assert found is not None
            engine.load_state(found[1])
        for _ in range(setting["steps"]):
            loss, done = train_step(engine, setting, step)
            losses.append(loss)
            applied.append(done)
            scales.append(engine.loss_scale())
            step += 1
        saved = f"{setting['name']}-{number}"
        state, weights, norm = engine.state(), engine.weights(), float(engine.parameter_norm())
        if world.is_main:
            checkpoints = Checkpoints(folder / saved, "x")
            checkpoints.save(step, {}, state, {})
            checkpoints.wait()
        with engine.full_model() as model:
            evaluated = world.gather_objects(weights_fingerprint(model))
        if world.is_main:
            # Every rank evaluates the model that is published.
            whole = whole and {*evaluated, weights_fingerprint(engine.with_weights(weights))} == {
                weights_fingerprint(weights)
            }
        wrapper = weakref.ref(engine.model)
        engine.close()
        assert way != "ddp" or world.size == 1 or wrapper() is None  # DDP's buckets are as large as the model
        if world.size > 1:
            dist.barrier()
    return {
        "losses": losses,
        "applied": applied,
        "scales": scales,
        "whole": whole,
        **(compared(weights, setting, step) if world.is_main else {}),
        "norm_error": abs(norm / total_norm(weights) - 1) if world.is_main else None,
    }


def total_norm(weights: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for name, t in weights.items() if name != "seen"))


def compared(weights: dict[str, Tensor], setting: dict[str, Any], steps: int) -> dict[str, Any]:
    """`error` is ‖w − w_ref‖ / ‖w_ref − w_start‖, the reference being one plain optimizer on whole batches."""
    model = Tiny()
    begin = {name: t.clone() for name, t in model.state_dict().items()}
    of = spec(setting)
    optimizer = build_optimizer(model, of.optimizer)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        rows, labels = batch(step)
        loss = nn.functional.cross_entropy(model(rows), labels)
        losses.append(float(loss.detach()))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), of.clip or math.inf)
        if step not in setting.get("skipped", []):
            optimizer.step()
    end = model.state_dict()
    error = sum(float((weights[name].double() - end[name].double()).square().sum()) for name in end)
    moved = sum(float((begin[name].double() - end[name].double()).square().sum()) for name in end)
    return {
        "error": math.sqrt(error / moved),
        "undisturbed": losses[setting.get("first", 0) :],
        "weights": torch.cat([weights[name].double().reshape(-1) for name in sorted(end)]).tolist(),
    }


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    world = connect()
    torch.set_num_threads(1)
    if any(s.get("precision") == "fp16" for s in settings.values()):
        from deepspeed.accelerator import get_accelerator

        # DeepSpeed refuses fp16 on CPUs, although it works there, slowly.
        get_accelerator().is_fp16_supported = lambda: True
    results = {name: run(world, {"name": name, **setting}) for name, setting in settings.items()}
    everyone = world.gather_objects({name: (r["applied"], r["scales"]) for name, r in results.items()})
    if world.is_main:
        for name in results:
            results[name]["agreed"] = all(of_rank[name] == everyone[0][name] for of_rank in everyone)
        Path(sys.argv[2]).write_text(json.dumps(results))
    if world.size > 1:
        dist.barrier()
    leave(0)


if __name__ == "__main__":
    main()

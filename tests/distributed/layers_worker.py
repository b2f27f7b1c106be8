"""One rank that trains students with an online teacher: `layers_worker.py SETTINGS.json RESULTS.json`.

A setting is a chain of engines that train one student and its losses' weights, each continuing from the checkpoint of
the one before; the result is the distance of the final weights from those of one process with whole batches. Seven rows
are divided into three micro-batches for each rank, so that some are empty.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dtrain.data import EncodedSplit
from dtrain.data.batching import share_of
from dtrain.engines.choose import build_engine, build_model
from dtrain.engines.engine import Engine
from dtrain.engines.optim import build_optimizer
from dtrain.losses.layers import Shapes
from dtrain.losses.objective import Objective, build_losses
from dtrain.models import build
from dtrain.models.inside import shape_of
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.models import architectures
from dtrain.recipe.training import TrainSpec
from dtrain.runtime.distributed import World, connect, leave
from dtrain.tasks.registry import TASKS
from dtrain.teachers.online import OnlineTeacher
from dtrain.training.feed import Feed
from dtrain.training.lockstep import LockstepModel, load_lockstep
from tests.distributed.engine_worker import sharding

LABELS = ["a", "b", "c"]
BATCH = 7
STUDENT = {"type": "bert", "hidden": 8, "layers": 2, "heads": 2, "dropout": 0.0}
TEACHER = {"type": "nezha", "hidden": 12, "layers": 3, "heads": 2}
LOSSES: dict[str, list[dict[str, Any]]] = {
    "all": [
        {"type": "hidden_mse"},
        {"type": "embedding_mse"},
        {"type": "attention_mse"},
        {"type": "qkv_relations", "relation_heads": 4},
        {"type": "vid", "weight": 0.01},
        {"type": "soft_targets"},
        {"type": "cross_entropy", "weight": 0.5},
    ],
    # The loss does not depend on anything after the queries of the last layer.
    "behind": [{"type": "hidden_mse", "layers": [[1, 1]]}, {"type": "attention_mse", "layers": "last"}],
}


def rows() -> EncodedSplit:
    random = np.random.default_rng(0)
    texts = [random.integers(2, 30, random.integers(1, 10)) for _ in range(40)]
    return EncodedSplit(
        ids=np.arange(40) + 7,
        labels=np.array([-1 if i % 5 == 3 else int(text[0]) % 3 for i, text in enumerate(texts)]),
        tokens=np.concatenate(texts).astype(np.int32),
        types=None,
        offsets=np.cumsum([0, *map(len, texts)]),
        pad_id=0,
        load_rows=list,
    )


def model_of(spec: dict[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(architectures()[spec["type"]].model_validate(spec), vocabulary=30, labels=LABELS, pad_id=0)


def spec(setting: dict[str, Any]) -> TrainSpec:
    values = {"name": "s", "model": {"type": "bilstm"}, "batch_size": BATCH, "clip": 1.0, "optimizer": {"lr": 0.01}}
    return TrainSpec.model_validate(values | {"activation_checkpointing": setting.get("checkpointed", False)})


def objective_of(setting: dict[str, Any], model: nn.Module, source: OnlineTeacher, together: bool) -> Objective:
    terms = [LossSpec.model_validate(term) for term in LOSSES[setting["losses"]]]
    shape, theirs = shape_of(model), shape_of(source.inner)
    assert shape and theirs
    torch.manual_seed(5)
    losses = build_losses(terms, {}, Shapes(shape, {"t": theirs}))
    return Objective(model, losses, TASKS["classification"](LABELS, []).ask, together=together)


def feed_of(losses: Any, source: OnlineTeacher) -> Feed:
    task, part = TASKS["classification"](LABELS, []), rows()
    return Feed(
        part,
        lambda index: task.collate(part, index, losses.needs),
        task.units(part),
        online={"t": (source, losses.outputs_of("t"))},
        device=torch.device("cpu"),
    )


def batch(step: int) -> np.ndarray:
    return np.random.default_rng(step).permutation(40)[:BATCH]


def train_step(engine: Engine, feed: Feed, step: int) -> float:
    total = torch.zeros((), dtype=torch.float64)
    shares = share_of(batch(step), engine.rank, engine.ranks, 3, step)
    for number, share in enumerate(shares):
        scale = 1 / BATCH if len(share) else 0.0
        given = feed.batch(share if len(share) else batch(step)[:1])
        with engine.synchronise_when(number == 2):
            with engine.autocast():
                loss = engine.model(given)[0] * scale
            engine.backward(loss)
        total += loss.detach().double()
    engine.step(1.0)
    return float(engine.world.sum(total))


def run(world: World, setting: dict[str, Any]) -> dict[str, Any]:
    teacher = model_of(TEACHER, 1).eval()
    if setting.get("sharded"):
        model: nn.Module = load_lockstep(lambda: teacher, "fp32", world)
        assert isinstance(model, LockstepModel)
        source = OnlineTeacher(model, world.device, "fp32", inner=model.model)
    else:
        source = OnlineTeacher(teacher.requires_grad_(False), world.device, "fp32")
    state: dict[str, Tensor] | None = None
    losses, step = [], 0
    for way in setting["chain"]:
        world.sharding = sharding(way, {})
        made = build_model(world, lambda: model_of(STUDENT, 2), data_parallel=True)
        objective = objective_of(setting, made, source, together=True)
        engine = build_engine(world, objective, spec(setting), data_parallel=True, precision="fp32")
        feed = feed_of(objective.losses, source)
        if way == "ddp":
            engine.warm_up(lambda feed=feed, engine=engine: engine.model(feed.batch(np.array([0])))[0])
        if step:
            engine.load_state(world.gather_objects(state)[0])
        for _ in range(setting["steps"]):
            losses.append(train_step(engine, feed, step))
            step += 1
        state = engine.state()
        published = engine.weights()
        engine.close()
        feed.close()
        dist.barrier()
    if not world.is_main:
        return {}
    assert state is not None
    weights = {name.removeprefix("weight/"): t for name, t in state.items() if name.startswith("weight/")}
    return {"losses": losses, "published": sorted(published), **compared(weights, setting, step)}


def compared(weights: dict[str, Tensor], setting: dict[str, Any], steps: int) -> dict[str, Any]:
    """`error` is ‖w − w_ref‖ / ‖w_ref − w_start‖ of the model and, separately, of the losses' weights."""
    source = OnlineTeacher(model_of(TEACHER, 1).eval(), torch.device("cpu"), "fp32")
    whole = objective_of(setting, model_of(STUDENT, 2), source, together=False)
    feed = feed_of(whole.losses, source)
    begin = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    optimizer = build_optimizer(whole, spec(setting).optimizer)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = whole(feed.batch(batch(step)))[0] / BATCH
        losses.append(float(loss.detach()))
        loss.backward()
        nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        optimizer.step()
    end = whole.state_dict()

    def error(prefix: str) -> float:
        names = [name for name in end if name.startswith(prefix) and end[name].is_floating_point()]
        apart = sum(float((weights[name].double() - end[name].double()).square().sum()) for name in names)
        moved = sum(float((begin[name].double() - end[name].double()).square().sum()) for name in names)
        return math.sqrt(apart / moved)

    feed.close()
    return {"error": error("model."), "error_of_losses": error("losses."), "undisturbed": losses}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    world = connect()
    torch.set_num_threads(1)
    results = {name: run(world, setting) for name, setting in settings.items()}
    if world.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.barrier()
    leave(0)


if __name__ == "__main__":
    main()

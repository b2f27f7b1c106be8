"""FSDP2: parameters, gradients and optimizer state as DTensors, each rank holding a slice of every one.

torch's `fully_shard` is called here and not through Accelerate, whose FSDP2 silently becomes DDP on CPUs. Shards
are float32 and autocast rounds, so every precision rounds as it does under DDP.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dtrain.distributed import World
from dtrain.recipe.schema import OptimizerSpec
from dtrain.training.engine import Engine
from dtrain.training.optim import build_optimizer


class ShardedEngine(Engine):
    """What engines share whose `bare` has its parameters cut up: a copy without weights, to be filled."""

    def _keep_blank(self, model: nn.Module) -> None:
        """Remember the module's structure; called before its parameters are cut up."""
        empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
        self._blank = copy.deepcopy(model, dict(empty))

    @contextlib.contextmanager
    def plain(self) -> Iterator[nn.Module]:
        # Evaluation then is what it is everywhere else: batches dealt out to ranks, the same bits for any number of
        # them. The price is one float32 copy of the model on each rank for as long as it lasts.
        weights = {name: tensor.detach().clone() for name, tensor in self._weights()}
        yield _filled(self._blank, weights).to(self.world.device)

    def with_weights(self, weights: dict[str, torch.Tensor]) -> nn.Module:
        return _filled(self._blank, weights)


class FsdpEngine(ShardedEngine):
    """One model spread over all ranks by `fully_shard`; each block is gathered when it is needed."""

    def __init__(
        self, world: World, model: nn.Module, optimizer: OptimizerSpec, *, precision: str, reshard: bool = True
    ) -> None:
        """Cut up `model`, which may be larger than one device: blocks move there one by one, already cut."""
        self._place(world, model, True, precision)
        self._keep_blank(model)
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
        self.bare = self.model = model
        # `fully_shard` has put new parameters in place of the old ones: only now can an optimizer hold them.
        self.optimizer = build_optimizer(model, optimizer)

    def synchronise_when(self, last: bool) -> AbstractContextManager[None]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing outside of this object holds the model."""


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model, innermost lists left out: a transformer's layers."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    inner = {id(m) for outer in lists for m in outer.modules() if m is not outer}
    return [b for m in lists if id(m) not in inner for b in m if any(True for _ in b.parameters())]


def _filled(blank: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    model = copy.deepcopy(blank)
    model.load_state_dict(weights, assign=True)
    return model

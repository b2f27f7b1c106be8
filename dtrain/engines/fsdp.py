"""FSDP2: parameters, gradients and optimizer state as DTensors, each rank holding a slice of every one.

torch's `fully_shard` is called here and not through Accelerate, whose FSDP2 silently becomes DDP on CPUs. Shards are
float32 and autocast rounds them, so that every precision rounds as it does under DDP.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dtrain.engines.engine import Engine, blank
from dtrain.engines.optim import build_optimizer
from dtrain.losses.objective import Objective
from dtrain.recipe.optimizers import OptimizerSpec
from dtrain.runtime.distributed import World


class ShardedEngine(Engine):
    """What engines share that shard the parameters of `module`: whole weights go into a copy that has none."""

    def _keep_blank(self, model: nn.Module) -> None:
        """Keep the module's structure without weights; called before its parameters are sharded."""
        self._blank = blank(model)

    @contextlib.contextmanager
    def full_model(self) -> Iterator[nn.Module]:
        # Evaluation then works as with any engine: ranks share the batches, and scores have the same bits for any
        # number of ranks. The price is a whole float32 copy of the model on each rank during the evaluation.
        weights = {name: tensor.detach().clone() for name, tensor in self._weights()}
        yield Objective.inner(_filled(self._blank, weights).to(self.world.device))

    def with_weights(self, weights: dict[str, torch.Tensor]) -> nn.Module:
        return _filled(Objective.inner(self._blank), weights)


class FsdpEngine(ShardedEngine):
    """One model spread over all ranks by `fully_shard`; each block is gathered when it is needed."""

    def __init__(
        self, world: World, model: nn.Module, optimizer: OptimizerSpec, *, precision: str, reshard: bool = True
    ) -> None:
        """Shard `model`, whose weights are read on rank 0 only; on other ranks they may be on the meta device.

        The model may be larger than a device, and than the host memory of ranks other than rank 0: each device gets its
        slices one parameter after another.
        """
        self._place(world, model, True, precision)
        self._keep_blank(model)
        cut = blank(model)
        spread(cut, mesh_of(world), reshard)
        cut._apply(lambda t: torch.empty_like(t, device=world.device) if t.is_meta else t.to(world.device))
        values = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, p in cut.named_parameters(remove_duplicate=False):
                _scatter(values[name].detach(), p)
        self.module = self.model = cut
        # `fully_shard` has put new parameters in place of the old ones: only now can an optimizer hold them.
        self.optimizer = build_optimizer(cut, optimizer)

    def warm_up(self, forward: Callable[[], torch.Tensor]) -> None:
        """Nothing to do: the place of a gradient in its reduction does not change after the first pass."""

    def synchronise_when(self, last: bool) -> AbstractContextManager[None]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def _placed(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if not isinstance(like, DTensor):
            return tensor
        moved = tensor.to(like.to_local().device)
        # Every rank has the whole tensor, so nothing is sent.
        return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)

    def close(self) -> None:
        """Nothing to do: nothing outside of this object refers to the model."""


def mesh_of(world: World) -> DeviceMesh:
    """A mesh of one dimension with all ranks."""
    return init_device_mesh(world.device.type, (world.size,))


def built_once(world: World, make: Callable[[], nn.Module]) -> nn.Module:
    """The module that `make` builds on rank 0; other ranks get it with parameters on the meta device (a collective).

    Raises:
        Exception: what `make` raises on rank 0; other ranks raise a DtrainError, see `World.together`.
    """
    made: list[nn.Module] = []

    def on_main() -> nn.Module | None:
        if world.rank > 0:
            return None
        made.append(make())
        return blank(made[0])

    told = world.together(on_main)[0]
    assert told is not None
    return made[0] if made else told


def _scatter(values: torch.Tensor, p: torch.Tensor) -> None:
    """Give every rank its slice of rank 0's `values`."""
    assert isinstance(p, DTensor)
    on_device = p.to_local().device
    whole = torch.empty(p.shape, dtype=p.dtype, device=on_device) if values.is_meta else values.to(on_device)
    p.copy_(distribute_tensor(whole, p.device_mesh, p.placements))


def spread(model: nn.Module, mesh: DeviceMesh, reshard: bool = True) -> None:
    """Shard `model` in place: every rank's device keeps a slice of each parameter, and blocks are gathered when called.

    Args:
        reshard: free a gathered block after its forward pass, and gather it again for its backward pass.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            # torch moves a recurrent module's weights into one piece of memory when it is called or moved on a GPU. What
            # FSDP2 gathers later would not reach that piece: the model would go on with the weights of its first step.
            module.flatten_parameters = _leave_apart  # type: ignore[method-assign]
    for block in _blocks(Objective.inner(model)):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)


def _leave_apart() -> None:
    """Takes the place of `nn.RNNBase.flatten_parameters`, and does nothing."""


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model, innermost lists left out: a transformer's layers."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    inner = {id(m) for outer in lists for m in outer.modules() if m is not outer}
    return [b for m in lists if id(m) not in inner for b in m if any(True for _ in b.parameters())]


def _filled(blank: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    model = copy.deepcopy(blank)
    model.load_state_dict(weights, assign=True)
    return model

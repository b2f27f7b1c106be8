"""DeepSpeed ZeRO-1, 2 and 3, configured by the recipe alone; whole weights and state are read from its buffers.

DeepSpeed is called here and not through Accelerate (see `dtrain.runtime.sharding`). In bf16 and fp16 it rounds the
model itself to 16 bits and steps float32 copies: those are the weights that are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dtrain.engines.engine import Turn
from dtrain.engines.fsdp import ShardedEngine
from dtrain.engines.lamb import Lamb
from dtrain.engines.optim import step_count
from dtrain.engines.precision import DTYPES
from dtrain.engines.zero_internals import (
    Buffer,
    attach_zero,
    gathered,
    is_cut,
    load_scaler_state,
    loss_scale,
    read_buffers,
    scaler_state,
    start_engine,
)
from dtrain.errors import DtrainError
from dtrain.runtime.distributed import World


class ZeroEngine(ShardedEngine):
    """One model whose optimizer state (stage 1), gradients (2) and parameters (3) are spread over all ranks."""

    def __init__(
        self,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        config: dict[str, Any],
    ) -> None:
        """Give `model` and `optimizer` to DeepSpeed; at stage 3 a model larger than one device is moved piecewise.

        Raises:
            ShardingError: LAMB cannot tell in DeepSpeed's layout where whole parameters lie.
        """
        self._place(world, model, True, precision)
        self._keep_blank(model)
        self.stage: int = config["zero_optimization"]["stage"]
        self.optimizer = optimizer
        self._names = {id(p): name for name, p in model.named_parameters()}
        # DeepSpeed makes its float32 weights from the model's rounded ones: the exact ones are put in their place.
        exact = {} if precision == "fp32" else {name: p.detach().clone() for name, p in model.named_parameters()}
        if self.stage == 3:
            for p in model.parameters():
                p.data = p.data.to(DTYPES.get(precision, p.dtype))
        self._engine = start_engine(model, optimizer, config, world.device.type)
        self.model, self.module = self._engine, model
        if isinstance(optimizer, Lamb):
            attach_zero(optimizer, self._engine)
        self._buffers = read_buffers(self._engine)
        for buffer, index, name in self._trained():
            if name in exact:
                buffer.cut(index, exact[name], buffer.flat)

    # --- a step --------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # the model itself is in 16 bits; losses are computed in float32

    def warm_up(self, forward: Callable[[], torch.Tensor]) -> None:
        """Nothing to do: the place of a gradient in its reduction does not change after the first pass."""

    def synchronise_when(self, last: bool) -> AbstractContextManager[Any]:
        # Stages 2 and 3 reduce after every pass: a rank keeps only the sums of its own share.
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self.ranks, scale_wrt_gas=False)

    def step(self, clip: float | None = None, only: Turn | None = None) -> tuple[torch.Tensor, bool]:
        """As `Engine.step`; `clip` is that of the config, and all parameters are stepped together."""
        if only is not None:
            raise ValueError("only: ZeRO steps the model and its losses together")
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm if norm is not None else float("nan")), self._engine.was_step_applied()

    def loss_scale(self) -> float:
        return loss_scale(self._engine) if self.precision == "fp16" else 1.0

    def parameter_norm(self) -> torch.Tensor:
        pieces = [b.part(index, b.flat) for b in self._buffers for index in range(len(b.params))]
        square = torch.stack([piece.double().square().sum() for piece in pieces]).sum().to(self.world.device)
        dist.all_reduce(square)
        return square.sqrt()

    # --- whole weights and state ---------------------------------------------------------------------

    @contextlib.contextmanager
    def full_model(self) -> Iterator[nn.Module]:
        if self.stage < 3 and self.precision == "fp32":
            yield self.inner  # whole as it is
        else:
            with super().full_model() as model:
                yield model

    def close(self) -> None:
        self._engine.destroy()

    def _shapes(self) -> Iterator[tuple[str, torch.Size]]:
        for name, tensor in self._blank.state_dict().items():
            yield name, tensor.shape

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        places = {name: (buffer, index) for buffer, index, name in self._trained()}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            own = self._names.get(id(tensor), name)  # a shared weight has a second name
            if own in places:
                buffer, index = places[own]
                yield name, buffer.assemble(index, buffer.flat, self.world.device)
            else:
                with gathered(tensor):
                    found = tensor.detach()
                    yield name, found.float() if found.is_floating_point() else found

    def _optimizer_state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for buffer, index, name in self._trained():
            for field, tensor in self.optimizer.state.get(buffer.flat, {}).items():
                flat = tensor.shape == buffer.flat.shape
                yield field, name, buffer.assemble(index, tensor, self.world.device) if flat else tensor

    def _trained(self) -> Iterator[tuple[Buffer, int, str]]:
        """Where each trained parameter lies, the same order on every rank: buffer, place in it, name."""
        for buffer in self._buffers:
            for index, p in enumerate(buffer.params):
                yield buffer, index, self._names[id(p)]

    def _load(self, weights: dict[str, torch.Tensor], state: dict[str, dict[str, torch.Tensor]]) -> None:
        for buffer in self._buffers:
            names = [self._names[id(p)] for p in buffer.params]
            for index, name in enumerate(names):
                buffer.cut(index, weights[name], buffer.flat)
            fields = self._fields(buffer, [state.get(name, {}) for name in names])
            if fields:
                self.optimizer.state[buffer.flat] = fields
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            with gathered(tensor, write=True):
                if self.rank == 0 or not is_cut(tensor):
                    tensor.data.copy_(weights[name])

    def _fields(self, buffer: Buffer, saved: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The optimizer's state of a buffer, from that of each of its parameters."""
        fields: dict[str, torch.Tensor] = {}
        for field in sorted({field for of_parameter in saved for field in of_parameter}):
            tensors = {index: found[field] for index, found in enumerate(saved) if field in found}
            first = next(iter(tensors.values()))
            if first.dim() == 0:
                if len({float(tensor) for tensor in tensors.values()}) > 1:
                    raise DtrainError(f"checkpoint: parameters of one ZeRO buffer differ in {field}")
                fields[field] = step_count(first, self.optimizer, buffer.flat)
                continue
            fields[field] = torch.zeros_like(buffer.flat)
            for index, tensor in tensors.items():
                buffer.cut(index, tensor, fields[field])
        return fields

    def _scaler_state(self) -> dict[str, float]:
        return scaler_state(self._engine) if self.precision == "fp16" else {}

    def _load_scaler(self, state: dict[str, float]) -> None:
        if self.precision == "fp16":
            load_scaler_state(self._engine, state)

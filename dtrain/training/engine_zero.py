"""DeepSpeed ZeRO-1, 2 and 3, told only what the recipe says, with whole weights and state read through its layout.

`deepspeed.initialize` is called here and not through Accelerate (see `dtrain.sharding`). In bf16 and fp16
DeepSpeed rounds the model itself to 16 bits and steps float32 copies: those are the weights that are kept.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from dtrain.distributed import World
from dtrain.errors import DtrainError
from dtrain.training.engine_fsdp import ShardedEngine
from dtrain.training.lamb import Lamb
from dtrain.training.optim import step_count
from dtrain.training.precision import DTYPES
from dtrain.training.zero_layout import Buffer, attach_zero, read_buffers

# DeepSpeed's calls by the names that torch had before 2.13.
warnings.filterwarnings("ignore", "`torch.distributed.(reduce_scatter|all_gather)", FutureWarning)


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
            ShardingError: LAMB, under a layout in which whole parameters cannot be told.
        """
        self._place(world, model, True, precision)
        self._keep_blank(model)
        if world.device.type == "cpu":
            # Its all-reduce for inference, which nothing here calls, is compiled for 30 s at the first start.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.logger.setLevel(logging.ERROR)
        self.stage: int = config["zero_optimization"]["stage"]
        self.optimizer = optimizer
        self._names = {id(p): name for name, p in model.named_parameters()}
        # DeepSpeed makes its float32 weights from the model's rounded ones: the exact ones are put in their place.
        exact = {} if precision == "fp32" else {name: p.detach().clone() for name, p in model.named_parameters()}
        if self.stage == 3:
            for p in model.parameters():
                p.data = p.data.to(DTYPES.get(precision, p.dtype))
            deepspeed.zero.Init(module=model, config_dict_or_path=config)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.model, self.bare = self._engine, model
        if precision == "fp16":
            # The loop ends a run of overflows itself, and says so in the same words for every engine.
            self._engine.optimizer.loss_scaler.raise_error_at_min_scale = False
        if isinstance(optimizer, Lamb):
            attach_zero(optimizer, self._engine)
        self._buffers = read_buffers(self._engine)
        for buffer, index, name in self._trained():
            if name in exact:
                _cut(buffer, index, exact[name], buffer.flat)

    # --- a step --------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # the model itself is in 16 bits; losses are computed in float32

    def settle(self, forward: Callable[[], torch.Tensor]) -> None:
        """Nothing to do: where a gradient is reduced does not change after the first pass."""

    def synchronise_when(self, last: bool) -> AbstractContextManager[Any]:
        # Stages 2 and 3 reduce after every pass: only the sums of a rank's own share are kept.
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self.ranks, scale_wrt_gas=False)

    def step(self, clip: float | None = None) -> tuple[torch.Tensor, bool]:
        """As `Engine.step`; `clip` is the one that the config was filled with."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm if norm is not None else float("nan")), self._engine.was_step_applied()

    def loss_scale(self) -> float:
        return float(self._engine.optimizer.loss_scale) if self.precision == "fp16" else 1.0

    def parameter_norm(self) -> torch.Tensor:
        pieces = [b.flat[p.start : p.start + p.length] for b in self._buffers for p in b.parts]
        square = torch.stack([piece.detach().double().square().sum() for piece in pieces]).sum().to(self.world.device)
        dist.all_reduce(square)
        return square.sqrt()

    # --- whole weights and state ---------------------------------------------------------------------

    @contextlib.contextmanager
    def plain(self) -> Iterator[nn.Module]:
        if self.stage < 3 and self.precision == "fp32":
            yield self.inner  # whole as it is
        else:
            with super().plain() as model:
                yield model

    def close(self) -> None:
        self._engine.destroy()

    def _shapes(self) -> Iterator[tuple[str, torch.Size]]:
        for name, tensor in self._blank.state_dict().items():
            yield name, tensor.shape

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        places = {name: (buffer, index) for buffer, index, name in self._trained()}
        for name, tensor in self.bare.state_dict(keep_vars=True).items():
            own = self._names.get(id(tensor), name)  # a shared one has a second name
            if own in places:
                buffer, index = places[own]
                yield name, self._assemble(buffer, index, buffer.flat)
            elif hasattr(tensor, "ds_id"):  # stage 3, not trained
                with deepspeed.zero.GatheredParameters([tensor]):
                    yield name, tensor.detach().float()
            else:
                yield name, tensor.detach().float() if tensor.is_floating_point() else tensor.detach()

    def _optimizer_state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for buffer, index, name in self._trained():
            for field, tensor in self.optimizer.state.get(buffer.flat, {}).items():
                flat = tensor.shape == buffer.flat.shape
                yield field, name, self._assemble(buffer, index, tensor) if flat else tensor

    def _trained(self) -> Iterator[tuple[Buffer, int, str]]:
        """Where each trained parameter lies, the same order on every rank: buffer, place in it, name."""
        for buffer in self._buffers:
            for index, p in enumerate(buffer.params):
                yield buffer, index, self._names[id(p)]

    def _assemble(self, buffer: Buffer, index: int, flat: torch.Tensor) -> torch.Tensor:
        """The whole of a parameter, or of something laid out like it, from every rank's part (*together*)."""
        part, offset = buffer.parts[index], buffer.offsets[index]
        full = torch.zeros(part.shape.numel(), dtype=flat.dtype, device=self.world.device)
        full[offset : offset + part.length] = flat.detach()[part.start : part.start + part.length]
        dist.all_reduce(full, group=buffer.group)
        return full.view(part.shape)

    def _load(self, weights: dict[str, torch.Tensor], state: dict[str, dict[str, torch.Tensor]]) -> None:
        for buffer in self._buffers:
            saved = [state.get(self._names[id(p)], {}) for p in buffer.params]
            fields: dict[str, torch.Tensor] = {}
            for field in sorted({field for fields in saved for field in fields}):
                tensors = [of_parameter[field] for of_parameter in saved if field in of_parameter]
                if tensors[0].dim() == 0:
                    if len({float(t) for t in tensors}) > 1:
                        raise DtrainError(f"checkpoint: parameters of one ZeRO buffer differ in {field}")
                    fields[field] = step_count(tensors[0], self.optimizer, buffer.flat)
                    continue
                fields[field] = torch.zeros_like(buffer.flat)
                for index, of_parameter in enumerate(saved):
                    if field in of_parameter:
                        _cut(buffer, index, of_parameter[field], fields[field])
            for index, p in enumerate(buffer.params):
                _cut(buffer, index, weights[self._names[id(p)]], buffer.flat)
            if fields:
                self.optimizer.state[buffer.flat] = fields
        for name, tensor in self.bare.state_dict(keep_vars=True).items():
            if hasattr(tensor, "ds_id"):
                with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
                    if self.rank == 0:
                        tensor.data.copy_(weights[name])
            else:
                tensor.data.copy_(weights[name])

    def _scaler_state(self) -> dict[str, float]:
        if self.precision != "fp16":
            return {}
        scaler = self._engine.optimizer.loss_scaler
        return {"scale": float(scaler.cur_scale), "good_steps": float(scaler.cur_iter - scaler.last_overflow_iter - 1)}

    def _load_scaler(self, state: dict[str, float]) -> None:
        if self.precision == "fp16":
            scaler = self._engine.optimizer.loss_scaler
            scaler.cur_scale = state["scale"]
            scaler.last_overflow_iter = scaler.cur_iter - 1 - int(state["good_steps"])


def _cut(buffer: Buffer, index: int, full: torch.Tensor, flat: torch.Tensor) -> None:
    """Copy this rank's part of the whole parameter `full` to its place in `flat`."""
    part, offset = buffer.parts[index], buffer.offsets[index]
    flat.detach()[part.start : part.start + part.length] = full.reshape(-1)[offset : offset + part.length].to(flat)

"""How one training step touches the hardware: placement, precision, synchronisation, clipping.

Two uses of the same class: all ranks train one model together (Accelerate wraps it), or this rank trains a
model of its own and no gradient crosses ranks.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn

from dtrain.distributed import World
from dtrain.errors import DtrainError, InputError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(asked: str, device: torch.device, where: str) -> str:
    """`auto` follows the launcher's mixed precision, else is bf16 on GPUs that have it, else fp32.

    Raises:
        InputError: where recipe and launcher disagree, or fp16 is asked for on a CPU.
    """
    launcher = {"no": "auto", "fp16": "fp16", "bf16": "bf16"}.get(
        os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), "auto"
    )
    if asked == "auto":
        asked = launcher
    elif launcher not in ("auto", asked):
        raise InputError(f"{where}: {asked}, but accelerate's mixed_precision is {launcher}: make them agree")
    if asked == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise InputError(f"{where}: fp16 needs a GPU (found none; allowed here: fp32, bf16, auto)")
    return asked


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast region of 'fp32' (none), 'bf16' or 'fp16'."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])


class Engine:
    """A model and its optimizer, ready for steps."""

    def __init__(
        self,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        together: bool,
        precision: str,
    ) -> None:
        self.world = world
        self.precision = precision
        self.together = together and world.size > 1
        self.ranks = world.size if self.together else 1
        self.rank = world.rank if self.together else 0
        self.optimizer = optimizer
        self.bare = model.to(world.device)
        self.model: nn.Module = self.bare
        if self.together:
            kind = world.accelerator.distributed_type
            if kind not in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
                raise DtrainError(
                    f"accelerate's distributed_type {kind.value} is not supported yet: use one of the ddp configs"
                )
            self.model = world.accelerator.prepare_model(self.bare)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.precision, self.world.device)

    def synchronise_when(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients cross ranks with the last micro-batch of a step only."""
        return contextlib.nullcontext() if last or not self.together else self.model.no_sync()  # type: ignore[operator]

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, this rank's share of a sum over all ranks."""
        # DDP averages over ranks; the sum is wanted.
        self.scaler.scale(loss * self.ranks).backward()

    def clip(self, norm: float | None) -> torch.Tensor:
        """The global gradient norm before clipping (a tensor on the device, so that nothing waits for it)."""
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self.bare.parameters(), norm if norm is not None else float("inf"))

    def step(self) -> bool:
        """Apply the gradients; False when fp16 overflowed and the step was skipped (on every rank alike)."""
        before = self.scaler.get_scale() if self.precision == "fp16" else 1.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return self.precision != "fp16" or self.scaler.get_scale() >= before

    def state(self) -> dict[str, Any]:
        return {
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, tensors: dict[str, Any]) -> None:
        self.bare.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        if tensors["scaler"]:
            self.scaler.load_state_dict(tensors["scaler"])

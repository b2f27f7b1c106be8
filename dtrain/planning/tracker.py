"""Count the bytes of all live tensors during a computation on fake tensors: the peak, and what it consists of.

`torch.distributed._tools.mem_tracker.MemTracker` finds the same (a test compares them), but looks at every module, so
that its time grows with the square of the number of layers: 24 layers took two minutes, here seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

BLOCK = 512  # bytes; the CUDA allocator gives out multiples of this


@dataclass
class Live:
    """Bytes of live tensors by what they are for."""

    held: int = 0  # weights, gradients and the optimizer's state
    passing: int = 0  # activations, and temporary results of backward passes

    @property
    def total(self) -> int:
        return self.held + self.passing


class LiveBytes(TorchDispatchMode):
    """A context in which storages are counted from the operation that makes them until they are freed.

    Attributes:
        now: bytes that are alive now.
        peak: bytes at the moment when the most were alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = Live(), Live()
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as held, from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage in self._known:
                entry = self._known[storage]
                if not entry["held"]:
                    entry["held"] = True
                    self.now.passing -= entry["bytes"]
                    self.now.held += entry["bytes"]
            else:
                self._see(tensor, held=True)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = Live(self.now.held, self.now.passing)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value, held=False)
        return out

    def _see(self, tensor: Tensor, *, held: bool) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        entry = {"bytes": size, "held": held}
        self._known[storage] = entry
        weakref.finalize(storage, self._free, entry)
        if held:
            self.now.held += size
        else:
            self.now.passing += size
        if self.now.total > self.peak.total:
            self.peak = Live(self.now.held, self.now.passing)

    def _free(self, entry: dict[str, Any]) -> None:
        if entry["held"]:
            self.now.held -= entry["bytes"]
        else:
            self.now.passing -= entry["bytes"]


def held_by(model: torch.nn.Module) -> list[Tensor]:
    """Weights, buffers and gradients of a model."""
    weights = [*model.parameters(), *model.buffers()]
    return [*weights, *(p.grad for p in model.parameters() if p.grad is not None)]

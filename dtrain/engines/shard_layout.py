"""The layout of a tensor that an optimizer steps: which parameters it holds pieces of, and who holds the others."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from dtrain.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardingError(InputError):
    """It is unknown which whole parameters a tensor holds pieces of; the message says what to set."""


@dataclass(frozen=True)
class Part:
    """The piece of one whole parameter that a tensor holds on this rank (`length` 0 where it holds none)."""

    shape: torch.Size  # of the whole parameter
    start: int
    length: int


@dataclass(frozen=True)
class Layout:
    """The parameters that one tensor holds pieces of. Positions that no part covers are padding.

    Attributes:
        parts: the same parameters in the same order on every rank of `groups`.
        groups: a sum over a whole parameter is the sum over this rank's part, all-reduced over each of them in turn.
        device: where to all-reduce; None: where the tensor is.
    """

    parts: tuple[Part, ...]
    groups: tuple[dist.ProcessGroup, ...] = ()
    device: torch.device | None = None

    def check(self, tensor: Tensor) -> None:
        """Raise ShardingError where parts overlap or lie outside of the flat `tensor`."""
        end = 0
        for part in sorted((p for p in self.parts if p.length), key=lambda p: p.start):
            if part.start < end or part.start + part.length > tensor.numel():
                raise ShardingError(
                    f"layout of a flat buffer of {tensor.numel()} elements: the part at "
                    f"{part.start}..{part.start + part.length} overlaps another or lies outside"
                )
            end = part.start + part.length


def whole(p: Tensor) -> Layout:
    """The layout of a plain parameter."""
    return Layout((Part(p.shape, 0, p.numel()),))


def dtensor_layout(p: DTensor) -> Layout:
    """One part, the local shard, summed over each mesh dimension that shards it.

    Raises:
        ShardingError: a placement that neither shards nor replicates.
    """
    groups = []
    for mesh_dim, placement in enumerate(p.placements):
        if placement.is_replicate():
            continue
        # _StridedShard (FSDP2 over tensor parallel) shards, too, but does not answer to is_shard().
        if not (placement.is_shard() or type(placement).__name__ == "_StridedShard"):
            raise ShardingError(f"a parameter placed as {placement} on a device mesh has no norm to be summed")
        groups.append(p.device_mesh.get_group(mesh_dim))
    device = torch.device(p.device_mesh.device_type) if groups else None
    return Layout((Part(p.shape, 0, p.to_local().numel()),), tuple(groups), device)


def is_dtensor(t: Tensor) -> TypeGuard[DTensor]:
    """Whether `t` is a DTensor of FSDP2 or tensor parallelism.

    The module is not imported for it, which takes half a second: before others have imported it there is no DTensor.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """This rank's shard of a DTensor, sharing its memory (under no_grad); a plain tensor itself."""
    return t.to_local() if is_dtensor(t) else t


def placed_like(grad: Tensor, p: Tensor) -> Tensor:
    """`grad` sharded as its parameter `p` is (under tensor parallelism it may still be a partial sum)."""
    if is_dtensor(p) and is_dtensor(grad) and grad.placements != p.placements:
        return grad.redistribute(placements=p.placements)
    return grad

"""Rows of all ranks side by side, with the gradient as in a single process: for losses over pairs of rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_rows(rows: Tensor, room: int) -> Tensor:
    """The rows of every rank, [ranks x room, F], zeros where a rank has fewer than `room` (a collective).

    The gradient of a row is the sum over ranks of what each of them did with it, so backward is a collective, too. No
    rank waits for another's number of rows, which would make a GPU wait for the host.

    Args:
        rows: float [B, F], B at most `room`.
        room: the same on every rank.

    Raises:
        ValueError: there are more rows than room.
    """
    if len(rows) > room:
        raise ValueError(f"{len(rows)} rows in room for {room}")
    padded = torch.nn.functional.pad(rows, (0, 0, 0, room - len(rows)))
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return padded
    return _Gather.apply(padded)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        everyone = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        whole = gradient.contiguous().clone()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]

"""The point of least norm in a convex hull with bounded coefficients: an exact quadratic programme for each row."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-10  # times the mean squared norm; among equal gradients it favours equal weights
TOLERANCE = 1e-9  # of multipliers, on the same scale
APART = 1e-9  # upper bounds differ by multiples of it, so that no vertex is degenerate, where rounds could cycle


def min_norm_weights(gram: Tensor, limit: float = 1.0) -> Tensor:
    """argmin_w 1/2 w' G w with sum w = 1 and 0 <= w <= limit, for each row, without waiting for the device.

    Two vectors have a closed form (Desideri 2012, MGDA); more go through a primal active-set method on all rows at
    once (Nocedal and Wright 2006, algorithm 16.3), started from equal weights. Where several w are best, as
    for equal vectors, it is the one nearest to equal weights.

    Args:
        gram: float [B, K, K], inner products of K vectors.
        limit: the upper bound; limit * K >= 1, or there is no such w. One vector has weight 1 whatever the limit.

    Returns:
        float64 [B, K].

    Raises:
        ValueError: limit * K < 1 with K > 1.
    """
    count = gram.shape[-1]
    if count == 1:
        return torch.ones_like(gram[..., 0], dtype=torch.float64)
    if limit * count < 1 - 1e-9:
        raise ValueError(f"limit: weights of {count} teachers cannot sum to 1 when none exceeds {limit:g}")
    gram = gram.double()
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    gram = torch.where(scale > 0, gram / scale, 0.0) + RIDGE * eye
    if count == 2:
        share = (gram[:, 1, 1] - gram[:, 0, 1]) / (gram[:, 0, 0] + gram[:, 1, 1] - 2 * gram[:, 0, 1])
        share = share.clamp(1 - limit, limit)
        return torch.stack([share, 1 - share], dim=1)
    return _active_set(gram, limit)


def _active_set(gram: Tensor, limit: float) -> Tensor:
    rows, count, _ = gram.shape
    weights = gram.new_full((rows, count), 1 / count)
    bounds = torch.inf if limit >= 1 else limit + APART * torch.arange(1, count + 1, device=gram.device).double()
    upper = gram.new_zeros(count) + bounds  # a bound of 1 follows from the sum and the lower bounds
    low = torch.zeros(rows, count, dtype=torch.bool, device=gram.device)  # held at 0
    high = torch.zeros_like(low)  # held at the limit
    # Each round fixes or frees one weight of a row; 3 K rounds were enough in 200,000 random rows, K from 3 to 8.
    for _ in range(6 * count):
        free = ~(low | high)
        target, multiplier = _on_face(gram, free, torch.where(high, upper, 0.0))
        step = torch.where(free, target - weights, 0.0)
        room = torch.where(step < 0, weights, upper - weights).clamp(min=0.0)
        reach = torch.where(free & (step != 0), room / step.abs(), torch.inf)
        shortest, at = reach.min(1, keepdim=True)
        weights = weights + shortest.clamp(max=1.0) * step
        blocked = torch.zeros_like(free).scatter(1, at, shortest < 1)

        # At the best point of a face: free the bound that holds it back most.
        slope = torch.einsum("bij,bj->bi", gram, weights) + multiplier
        gain = torch.where(low, -slope, torch.where(high, slope, -torch.inf))
        most, which = gain.max(1, keepdim=True)
        freed = torch.zeros_like(free).scatter(1, which, (most > TOLERANCE) & (shortest >= 1))

        low = (low | (blocked & (step < 0))) & ~freed
        high = (high | (blocked & (step > 0))) & ~freed
        weights = torch.where(low, 0.0, torch.where(high, upper, weights))
    return weights.clamp(max=limit)


def _on_face(gram: Tensor, free: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """The best weights [B, K] of sum 1 where those not `free` are `held`, and the multiplier [B, 1] of the sum."""
    rows, count, _ = gram.shape
    system = gram.new_zeros(rows, count + 1, count + 1)
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    system[:, :count, :count] = torch.where(free[:, :, None], gram, eye)
    system[:, :count, count] = free.to(gram.dtype)
    system[:, count, :count] = 1.0
    right = torch.cat([torch.where(free, 0.0, held), gram.new_ones(rows, 1)], dim=1)
    solved, _ = torch.linalg.solve_ex(system, right)  # unlike `solve`, it does not look at the result
    return solved[:, :count], solved[:, count:]

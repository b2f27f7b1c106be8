"""How a weight changes over training; recipes are checked with it, so it does not import torch."""

from __future__ import annotations

import math


def part_of_way(progress: float, until: float, shape: str) -> float:
    """The share of a change, from 0 to 1, that is done at `progress` when the change ends at `until`.

    `shape` is linear, cosine, or step (the whole change at the end).
    """
    way = min(1.0, progress / until)
    if shape == "cosine":
        return (1 - math.cos(math.pi * way)) / 2
    return float(math.floor(way)) if shape == "step" else way

"""How a weight moves over training; used by recipes, so without torch."""

from __future__ import annotations

import math


def part_of_way(progress: float, until: float, shape: str) -> float:
    """How much, from 0 to 1, of a change is done at `progress` when it ends at `until`.

    `shape` is linear, cosine, or step (all of it at the end).
    """
    way = min(1.0, progress / until)
    if shape == "cosine":
        return (1 - math.cos(math.pi * way)) / 2
    return float(math.floor(way)) if shape == "step" else way

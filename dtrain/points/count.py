"""Knowledge points, counted over a training (Cheng et al., CVPR 2020, sections 3.2 and 3.3).

With H_i the entropy of a token, its text's background B, and a threshold b:

    token i is a knowledge point    mean_B H - H_i > b
    share in the foreground         mean over texts of N_fg / (N_fg + N_bg), of texts that have points
    m                               the first epoch at which a text has the most foreground points
    D_mean, D_std                   mean and standard deviation over texts of sum_{k <= m} |w_k - w_{k-1}| / |w_0|
    kept                            of the foreground tokens that were a point at some epoch, those that still are at the end

w_k are all weights after epoch k. A model that learns its points early has a small D_mean, one that learns them together
a small D_std.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Masks = Sequence[np.ndarray]  # bool [tokens], a text each


def points_of(entropies: Sequence[np.ndarray], background: Masks, threshold: float) -> list[np.ndarray]:
    """Which tokens of each text are knowledge points, bool [tokens]."""
    return [
        own[back].astype(np.float64).mean() - own.astype(np.float64) > threshold
        for own, back in zip(entropies, background, strict=True)
    ]


def path_lengths(weights: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """The length of the path that the weights have come at each of them, in norms of the first; they come one by one."""
    lengths: list[float] = []
    before: Mapping[str, Tensor] = {}
    first = 0.0
    for now in weights:
        if not lengths:
            first = _norm(now.values())
            lengths.append(0.0)
        else:
            step = _norm(tensor.double() - before[name].double() for name, tensor in now.items())
            lengths.append(lengths[-1] + (step / first if first else 0.0))
        before = now
    return lengths


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(sum(float(tensor.double().square().sum()) for tensor in tensors if tensor.is_floating_point()) ** 0.5)


def summary(
    points: Sequence[list[np.ndarray]],
    foreground: Masks,
    background: Masks,
    path: Sequence[float],
    end: int,
) -> dict[str, Any]:
    """What a training comes to.

    Args:
        points: of each epoch that was measured, of each text.
        path: of each epoch, as `path_lengths` gives it.
        end: which of the epochs the finished model is from.

    Returns:
        `epochs`: a mapping each with `foreground`, `background` (points of a text, on average) and `share`; those of the
        end as `foreground`, `background`, `share`; `d_mean`, `d_std`, `kept`. A number that no text gives is None.
    """
    front, back = (
        np.array([[int((own & mask).sum()) for own, mask in zip(each, masks, strict=True)] for each in points])
        for masks in (foreground, background)
    )
    epochs = [
        {"foreground": float(f.mean()), "background": float(b.mean()), "share": _share(f, b)}
        for f, b in zip(front, back, strict=True)
    ]
    most = front.argmax(0)  # the first of equal ones
    learnt = [path[epoch] for epoch, best in zip(most, front.max(0), strict=True) if best]
    ever, still = 0, 0
    for text, mask in enumerate(foreground):
        once = np.logical_or.reduce([each[text] for each in points]) & mask
        ever += int(once.sum())
        still += int((once & points[end][text]).sum())
    return {
        **epochs[end],
        "epochs": epochs,
        "d_mean": statistics.fmean(learnt) if learnt else None,
        "d_std": statistics.pstdev(learnt) if learnt else None,
        "kept": still / ever if ever else None,
    }


def _share(front: np.ndarray, back: np.ndarray) -> float | None:
    """Of foreground points among all, the mean over texts that have some."""
    some = front + back > 0
    return float((front[some] / (front[some] + back[some])).mean()) if some.any() else None

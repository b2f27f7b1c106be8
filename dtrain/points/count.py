"""Knowledge points, counted over the training of a model (Cheng et al., CVPR 2020, sections 3.2 and 3.3).

Let H_i be the entropy of a token, B the background of its text, and b a threshold:

    token i is a knowledge point    mean_B H - H_i > b
    share                           mean of N_fg / (N_fg + N_bg) over the texts that have points
    m                               the first epoch at which a text has the most foreground points
    D_mean, D_std                   mean and standard deviation of sum_{k <= m} |w_k - w_{k-1}| / |w_0| over the texts
                                    that have foreground points at some epoch
    kept                            the share of the foreground tokens that were points at some epoch and still are at
                                    the end

N_fg and N_bg are the numbers of points of a text in its foreground and its background. w_k are all weights after
epoch k (of the measured epochs). A model that learns its points early has a small D_mean, and one that learns them at
the same time has a small D_std.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Masks = Sequence[np.ndarray]  # one for each text, bool [tokens]


def points_of(entropies: Sequence[np.ndarray], background: Masks, threshold: float) -> list[np.ndarray]:
    """Which tokens of each text are knowledge points, bool [tokens] for each text.

    Args:
        entropies: of the tokens of each text, float [tokens].
        background: which tokens of each text are background; each text has at least one.
        threshold: b, in nats.
    """
    return [
        own[back].astype(np.float64).mean() - own.astype(np.float64) > threshold
        for own, back in zip(entropies, background, strict=True)
    ]


def path_lengths(weights: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """The length of the path of the weights from the first to each of them, divided by the norm of the first.

    `weights` are consumed one by one, so that only two of them are in memory.
    """
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
    """The knowledge points of a training in numbers, as defined at the top of this module.

    Args:
        points: for each measured epoch and each text, which tokens are points (`points_of`).
        foreground, background: which tokens of each text are foreground, and which background.
        path: for each measured epoch, the length that `path_lengths` gives.
        end: the position, among the measured epochs, of the one from which the finished model is.

    Returns:
        `epochs`, a mapping for each epoch with `foreground`, `background` (mean number of points of a text) and
        `share`; `foreground`, `background` and `share` of the epoch at `end`; `d_mean`, `d_std`, `kept`. A value is
        None if there is no text from which to compute it.
    """
    front, back = (
        np.array([[int((own & mask).sum()) for own, mask in zip(each, masks, strict=True)] for each in points])
        for masks in (foreground, background)
    )
    epochs = [
        {"foreground": float(f.mean()), "background": float(b.mean()), "share": _share(f, b)}
        for f, b in zip(front, back, strict=True)
    ]
    most = front.argmax(0)  # the first of equal numbers
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
    """The share of foreground points among all points of a text, averaged over texts that have points."""
    some = front + back > 0
    return float((front[some] / (front[some] + back[some])).mean()) if some.any() else None

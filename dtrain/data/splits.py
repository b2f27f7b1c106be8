"""Parts without a file, cut from the training rows in proportion to their labels."""

from __future__ import annotations

import numpy as np


def stratified_split(labels: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Split rows 0..N-1 into the parts of `shares` and the rest, `train`; a pure function of its arguments.

    A part gets round(share * N) rows, at least one. Its number of rows with a label differs from share * all rows with
    the label by less than one (largest remainders). Training keeps at least one row of every label, so that parts can
    be smaller.

    Args:
        labels: the number of each row's label, int64 [N].
        shares: part -> share, each above 0, their sum below 1.

    Returns:
        part -> positions, int64, ascending; every row is in one part. Parts without a row are left out.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    # The rows of each label in random order; each part in turn takes rows from the front.
    ordered = labels[order]
    queues = [order[ordered == label] for label in np.unique(labels)]
    del order, ordered  # 16 bytes a row
    sizes = np.array([len(queue) for queue in queues])
    taken = np.zeros_like(sizes)
    parts = {}
    for part, share in shares.items():
        counts = _largest_remainder(sizes * share, max(1, round(len(labels) * share)), sizes - 1 - taken)
        chosen = [queue[t : t + c] for queue, t, c in zip(queues, taken, counts, strict=True)]
        taken += counts
        parts[part] = np.sort(np.concatenate(chosen))
    rest = np.concatenate([queue[t:] for queue, t in zip(queues, taken, strict=True)])
    rest.sort()
    return {"train": rest, **{part: rows for part, rows in parts.items() if len(rows)}}


def _largest_remainder(quotas: np.ndarray, total: int, room: np.ndarray) -> np.ndarray:
    """Integers near `quotas`, each at most its `room`, that add up to `total` or as much as fits."""
    counts = np.minimum(np.floor(quotas).astype(np.int64), room)
    remainders = quotas - counts
    for index in np.argsort(-remainders, kind="stable"):
        if counts.sum() >= total:
            break
        # Labels whose quota was rounded down get one more row. Rows that a rare label lacks are not taken from another
        # label, which would change the proportions.
        if counts[index] < room[index] and remainders[index] > 0:
            counts[index] += 1
    return counts

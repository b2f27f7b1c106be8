"""Cutting parts that have no file off the training rows, in the proportions of their labels."""

from __future__ import annotations

import numpy as np


def stratified_split(labels: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Cut parts off rows 0..N-1; what remains is `train`.

    Each part gets round(share * N) rows, at least one, a label's number of them within one of share * its rows
    (largest remainder); training keeps at least one row of every label, so parts can be smaller. A pure
    function of its arguments.

    Args:
        labels: int64 [N].
        shares: part -> share, each above 0, together under 1.

    Returns:
        part -> int64 positions in ascending order, every row in one part; a part that got no row is left out.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    # The rows of each label in random order, cut from the front by one part after another.
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
    """Whole numbers near `quotas` that add up to `total`, each at most `room`; as much as fits."""
    counts = np.minimum(np.floor(quotas).astype(np.int64), room)
    remainders = quotas - counts
    for index in np.argsort(-remainders, kind="stable"):
        if counts.sum() >= total:
            break
        # Labels whose quota was rounded down get one more row. Rows that a rare label cannot give are not taken from
        # another label, which would change the proportions.
        if counts[index] < room[index] and remainders[index] > 0:
            counts[index] += 1
    return counts

"""Counter-based random numbers: hashes of (seed, epoch, row), an index within the row, and a purpose.

There is no generator whose state would depend on the order in which rows are visited, so a resumed run, or one on
another number of ranks, draws the same numbers.
"""

from __future__ import annotations

import numpy as np

# Purposes of random numbers; `draw` allows eight at most.
UNIT, CROSSING, LENGTH, ACTION, TOKEN, CUT, SIDE, PARTNER = range(8)


def row_keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """A key for each row of an epoch, uint64 of the shape of `rows`."""
    epoch_key = _mix(_mix(_spread(np.array([seed]))) + _spread(np.array([epoch])))
    return _mix(epoch_key + _spread(rows))


def draw(key: np.ndarray, index: np.ndarray, purpose: int) -> np.ndarray:
    """64 random bits for each index (from 0) under each key, uint64; `key` and `index` are broadcast."""
    return _mix(key + _spread(index * 8 + purpose + 1))


def uniform(bits: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, from random bits, uint64."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _spread(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the result depends on every bit of x, uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

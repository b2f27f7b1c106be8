"""Whole-word masks drawn on the fly: pure functions of (seed, epoch, row), the same on any rank and any device.

Random numbers are hashes of where they are used, so no generator has a state that would depend on the order in
which rows are met; a continued run, or one on another number of ranks, draws the same masks.
"""

from __future__ import annotations

import numpy as np

from dtrain.recipe.pretraining import MaskingSpec

# What a token of a packed row is, as bits.
WORD_START = 1
MASKABLE = 2  # no special token, and no part of a word that a row's end has cut
PIECE_START = 4  # [CLS]: what follows belongs together

_UNIT, _CROSSING, _LENGTH, _ACTION, _TOKEN = range(5)  # what a number is for


class Masker:
    """Chooses tokens and what stands in their place: [MASK], a random token, or the token itself (80/10/10).

    Devlin et al. 2018 (1810.04805, section 3.1), whole words as in Cui et al. 2019 (1906.08101), n-grams of words
    as in MacBERT (Cui et al. 2020, 2004.13922, section 3).
    """

    def __init__(self, spec: MaskingSpec, seed: int, mask_id: int, ordinary: np.ndarray) -> None:
        """`ordinary`: the token ids that may stand in for another, int [V]; no special ones."""
        self.spec = spec
        self.seed = seed
        self.mask_id = mask_id
        self.ordinary = ordinary

    def choose(self, kinds: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Which tokens are to be predicted, bool [B, L]; whole words only.

        Words (or n-grams) are taken in random order while they fit into `share` of a row's maskable tokens. The
        first that fits only in part is taken with the probability of that part, so that the mean share is exact.

        Args:
            kinds: uint8 [B, L], the bits above.
            rows: int [B], the numbers of the rows in their part.
        """
        maskable = (kinds & MASKABLE) > 0
        starts = maskable & ((kinds & WORD_START) > 0)
        key = self._key(rows, epoch)[:, None]
        if self.spec.ngram > 1:
            starts = self._span_starts(starts, maskable, key)
        unit = np.cumsum(starts, axis=1, dtype=np.int64)  # from 1; 0 for special tokens in front
        length = kinds.shape[1]
        flat = (np.arange(len(kinds))[:, None] * (length + 1) + unit)[maskable]
        sizes = np.bincount(flat, minlength=len(kinds) * (length + 1)).reshape(len(kinds), length + 1)

        drawn = np.where(maskable, _hash(key, unit, _UNIT), np.uint64(2**64 - 1))
        order = np.argsort(drawn, axis=1, kind="stable")  # the tokens of a unit stay together: they share a number
        unit = np.take_along_axis(unit, order, 1)
        size = np.take_along_axis(sizes, unit, 1)
        places = np.arange(length)
        first = np.concatenate([np.ones((len(unit), 1), bool), unit[:, 1:] != unit[:, :-1]], axis=1)
        before = np.maximum.accumulate(np.where(first, places, 0), axis=1)  # tokens of the units in front
        count = maskable.sum(axis=1, keepdims=True)
        part = (self.spec.share * count - before) / np.maximum(size, 1)
        taken = (places < count) & (part > _uniform(_hash(key, unit, _CROSSING)))
        chosen = np.empty_like(taken)
        np.put_along_axis(chosen, order, taken, axis=1)
        return chosen

    def replace(self, tokens: np.ndarray, chosen: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        """What the model reads, int64 [B, L]: `tokens` with the chosen ones replaced, each token for itself."""
        read = tokens.astype(np.int64)
        row, place = np.nonzero(chosen)
        key = self._key(rows, epoch)[row]
        action = _uniform(_hash(key, place, _ACTION))
        other = self.ordinary[_hash(key, place, _TOKEN) % np.uint64(len(self.ordinary))]
        read[row, place] = np.where(action < 0.8, self.mask_id, np.where(action < 0.9, other, read[row, place]))
        return read

    def _span_starts(self, starts: np.ndarray, maskable: np.ndarray, key: np.ndarray) -> np.ndarray:
        """The word starts that begin an n-gram. Lengths 1 to N are drawn N : N-1 : ... : 1 (MacBERT's 4:3:2:1)."""
        longest = self.spec.ngram
        weights = np.arange(longest, 0, -1)
        bounds = np.cumsum(weights) / weights.sum()
        lengths = 1 + np.searchsorted(bounds, _uniform(_hash(key, np.cumsum(starts, axis=1), _LENGTH)), side="right")
        begins = np.zeros_like(starts)
        left = np.zeros(len(starts), dtype=np.int64)  # words that the n-gram under way still takes
        for place in range(starts.shape[1]):
            left[~maskable[:, place]] = 0  # an n-gram does not reach over [SEP]
            word = starts[:, place]
            begins[:, place] = word & (left == 0)
            left = np.where(begins[:, place], lengths[:, place] - 1, left - (word & (left > 0)))
        return begins

    def _key(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        epoch_key = _mix(_mix(_spread(np.array([self.seed]))) + _spread(np.array([epoch])))
        return _mix(epoch_key + _spread(rows))


def _spread(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the result depends on every bit of x, uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(key: np.ndarray, index: np.ndarray, purpose: int) -> np.ndarray:
    return _mix(key + _spread(index * 8 + purpose + 1))


def _uniform(bits: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

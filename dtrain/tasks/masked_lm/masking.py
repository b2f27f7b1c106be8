"""Dynamic whole-word masking: masks are pure functions of (seed, epoch, row), the same on any rank and device."""

from __future__ import annotations

import numpy as np

from dtrain.recipe.corpus import MaskingSpec
from dtrain.tasks.masked_lm.draws import ACTION, CROSSING, LENGTH, TOKEN, UNIT, draw, row_keys, uniform

# Flags of a document's tokens, as bits.
WORD, SENTENCE = 1, 2  # the first token of a word, of a sentence
UNKNOWN = 4  # a token of a word that holds a special token such as [UNK]
# Flags of a packed row's tokens, as bits.
WORD_START = 1  # the first token of a word
MASKABLE = 2  # neither a special token ([UNK] is one) nor part of a word that holds one or that a row's end cuts
PIECE_START = 4  # a [CLS], with which a piece of a document, or a pair, begins
SENTENCE_START = 8  # the first token of a sentence other than its document's first; only in the stream of pairs.py
SECOND = 16  # a token of a pair's second text
OTHER = 32  # the [CLS] of a pair whose second text is from another document


class Masker:
    """Chooses tokens and replaces each by [MASK] (80 %), a random token (10 %) or itself (10 %).

    Devlin et al. 2018 (1810.04805, section 3.1), with whole words as in Cui et al. 2019 (1906.08101), and n-grams of
    words as in MacBERT (Cui et al. 2020, 2004.13922, section 3).
    """

    def __init__(self, spec: MaskingSpec, seed: int, mask_id: int, ordinary: np.ndarray) -> None:
        """`ordinary`: the ids of all tokens that may replace another one, int [V], without special tokens."""
        self.spec = spec
        self.seed = seed
        self.mask_id = mask_id
        self.ordinary = ordinary

    def choose(self, kinds: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Choose the tokens that are to be predicted, bool [B, L]; words are chosen as a whole.

        Words (or n-grams) are taken in random order while they fit into `share` of a row's maskable tokens. The
        first that fits only in part is taken with a probability equal to that part, so that the mean share is exact.

        Args:
            kinds: flags of the tokens, uint8 [B, L], as defined above.
            rows: positions of the rows in their part, int [B].
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

        drawn = np.where(maskable, draw(key, unit, UNIT), np.uint64(2**64 - 1))
        order = np.argsort(drawn, axis=1, kind="stable")  # the tokens of a unit have the same number and stay together
        unit = np.take_along_axis(unit, order, 1)
        size = np.take_along_axis(sizes, unit, 1)
        places = np.arange(length)
        first = np.concatenate([np.ones((len(unit), 1), bool), unit[:, 1:] != unit[:, :-1]], axis=1)
        before = np.maximum.accumulate(np.where(first, places, 0), axis=1)  # tokens of the units before this one
        count = maskable.sum(axis=1, keepdims=True)
        part = (self.spec.share * count - before) / np.maximum(size, 1)
        taken = (places < count) & (part > uniform(draw(key, unit, CROSSING)))
        chosen = np.empty_like(taken)
        np.put_along_axis(chosen, order, taken, axis=1)
        return chosen

    def replace(self, tokens: np.ndarray, chosen: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        """The input of the model, int64 [B, L]: `tokens` with the chosen ones replaced, independently of each other."""
        read = tokens.astype(np.int64)
        row, place = np.nonzero(chosen)
        key = self._key(rows, epoch)[row]
        action = uniform(draw(key, place, ACTION))
        other = self.ordinary[draw(key, place, TOKEN) % np.uint64(len(self.ordinary))]
        read[row, place] = np.where(action < 0.8, self.mask_id, np.where(action < 0.9, other, read[row, place]))
        return read

    def _span_starts(self, starts: np.ndarray, maskable: np.ndarray, key: np.ndarray) -> np.ndarray:
        """The word starts that begin an n-gram. Lengths 1 to N have weights N : N-1 : ... : 1 (MacBERT's 4:3:2:1)."""
        longest = self.spec.ngram
        weights = np.arange(longest, 0, -1)
        bounds = np.cumsum(weights) / weights.sum()
        lengths = 1 + np.searchsorted(bounds, uniform(draw(key, np.cumsum(starts, axis=1), LENGTH)), side="right")
        begins = np.zeros_like(starts)
        left = np.zeros(len(starts), dtype=np.int64)  # words that the current n-gram still lacks
        for place in range(starts.shape[1]):
            left[~maskable[:, place]] = 0  # an n-gram does not extend across [SEP]
            word = starts[:, place]
            begins[:, place] = word & (left == 0)
            left = np.where(begins[:, place], lengths[:, place] - 1, left - (word & (left > 0)))
        return begins

    def _key(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return row_keys(self.seed, epoch, rows)

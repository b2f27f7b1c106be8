"""Scores of texts against their references: BLEU, chrF, and ROUGE-L over characters, from counts that add up over texts.

A text has `COUNTS` whole numbers. Their sums are all that BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are made of,
so that any split over ranks gives the same score to the last digit; ROUGE-L (Lin 2004) is the mean of its F1 over texts.
BLEU's words and its formula are sacrebleu's own (Post 2018).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

ORDER = 4  # words of BLEU's longest n-gram
CHARACTERS = 6  # of chrF's longest n-gram
BETA = 2  # chrF: how much more recall counts than precision
# Of BLEU matches and n-grams by order, words of the text and of its reference; of chrF n-grams of the text, of the reference
# and matches, by order; of ROUGE-L the longest common subsequence, characters of the text and of its reference.
COUNTS = 2 * ORDER + 2 + 3 * CHARACTERS + 3


def count_text(text: str, reference: str, words: str) -> np.ndarray:
    """int64 [COUNTS] of one text.

    Args:
        words: how sacrebleu parts texts into words, its `tokenize`.
    """
    return np.array([*_bleu(text, reference, words), *_chrf(text, reference), *_rouge(text, reference)], dtype=np.int64)


def translation_scores(counts: np.ndarray) -> dict[str, float]:
    """`bleu`, `chrf` and `rouge_l` in [0, 1] of int64 [N, COUNTS], a row a text; zeros without any."""
    if not len(counts):
        return {"bleu": 0.0, "chrf": 0.0, "rouge_l": 0.0}
    total = counts.sum(axis=0).tolist()
    matches, ngrams, lengths = total[:ORDER], total[ORDER : 2 * ORDER], total[2 * ORDER : 2 * ORDER + 2]
    bleu = _scorer("none").compute_bleu(matches, ngrams, lengths[0], lengths[1], smooth_method="exp").score
    start = 2 * ORDER + 2
    rouge = (_f1(*row) for row in counts[:, start + 3 * CHARACTERS :].tolist())
    return {
        "bleu": bleu / 100,
        "chrf": _chrf_score(total[start : start + 3 * CHARACTERS]),
        # fsum rounds once, whatever the order of the texts.
        "rouge_l": math.fsum(rouge) / len(counts),
    }


def signature(words: str) -> str:
    """How BLEU was computed, as sacrebleu writes it, for whoever compares scores."""
    scorer = _scorer(words)
    scorer.corpus_score(["a"], [["a"]])  # it knows the number of references then
    return str(scorer.get_signature())


def nearest(candidates: Iterable[str], reference: str) -> int:
    """The candidate with the highest smoothed sentence-BLEU against the reference, the first of equal ones.

    One is added to matches and n-grams of two words and more (Lin and Och 2004). Words are what stands between blanks.
    """
    scorer = _smoothed()
    scores = [scorer.corpus_score([candidate], [[reference]]).score for candidate in candidates]
    return scores.index(max(scores))


@cache
def _scorer(words: str) -> BLEU:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=words, force=True)


@cache
def _smoothed() -> BLEU:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="none", force=True, smooth_method="add-k", smooth_value=1, effective_order=False)


def _bleu(text: str, reference: str, words: str) -> list[int]:
    found = _scorer(words).corpus_score([text], [[reference]])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def _chrf(text: str, reference: str) -> list[int]:
    counts: list[int] = []
    own, theirs = "".join(text.split()), "".join(reference.split())
    for n in range(1, CHARACTERS + 1):
        mine, gold = (Counter(line[i : i + n] for i in range(len(line) - n + 1)) for line in (own, theirs))
        # What is longer than the reference cannot be right or wrong.
        counts += [mine.total() if gold else 0, gold.total(), (mine & gold).total()]
    return counts


def _chrf_score(counts: list[int]) -> float:
    """The F-score of precision and recall, each the mean over the orders that text and reference have."""
    orders = [counts[i : i + 3] for i in range(0, len(counts), 3)]
    shared = [(match / own, match / gold) for own, gold, match in orders if own and gold]
    if not shared:
        return 0.0
    precision, recall = (sum(values) / len(shared) for values in zip(*shared, strict=True))
    if not precision + recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def _rouge(text: str, reference: str) -> list[int]:
    own, theirs = "".join(text.split()), "".join(reference.split())
    return [_common(own, theirs), len(own), len(theirs)]


def _common(a: str, b: str) -> int:
    """Characters of the longest common subsequence, by the bits of one number a character (Hyyro 2004)."""
    places: dict[str, int] = {}
    for place, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << place
    every = (1 << len(a)) - 1
    row = every
    for character in b:
        matched = row & places.get(character, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(a) - row.bit_count()


def _f1(common: int, own: int, theirs: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / own, common / theirs
    return 2 * precision * recall / (precision + recall)

"""Scores of texts against their references: BLEU, chrF, and ROUGE-L over characters, from counts for each text.

Each text has `COUNTS` integers. BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are computed from their sums, so
that any split over ranks gives the same score to the last digit; ROUGE-L (Lin 2004) is the mean of F1 over texts.
BLEU's tokenization and formula are those of sacrebleu (Post 2018).
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
# For BLEU: matches by order, n-grams by order, words of the text and of its reference. For chrF, for each order:
# n-grams of the text, of the reference, and matches. For ROUGE-L: the length of the longest common subsequence,
# characters of the text and of its reference.
COUNTS = 2 * ORDER + 2 + 3 * CHARACTERS + 3


def count_text(text: str, reference: str, words: str) -> np.ndarray:
    """The counts of one text, int64 [COUNTS].

    Args:
        words: the `tokenize` of sacrebleu, which splits texts into words.
    """
    return np.array([*_bleu(text, reference, words), *_chrf(text, reference), *_rouge(text, reference)], dtype=np.int64)


def translation_scores(counts: np.ndarray) -> dict[str, float]:
    """`bleu`, `chrf` and `rouge_l` in [0, 1] from the counts of N texts, int64 [N, COUNTS]; zeros without any text."""
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
        # fsum rounds once, so that the order of the texts has no influence.
        "rouge_l": math.fsum(rouge) / len(counts),
    }


def signature(words: str) -> str:
    """The signature of sacrebleu, which says how BLEU was computed."""
    scorer = _scorer(words)
    scorer.corpus_score(["a"], [["a"]])  # the signature needs the number of references, known from a call
    return str(scorer.get_signature())


def nearest(candidates: Iterable[str], reference: str) -> int:
    """The position of the candidate with the highest smoothed sentence-BLEU, the first among equal ones.

    One is added to the counts of matches and n-grams of two or more words (Lin and Och 2004). White space separates
    words.
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
        # Where the reference has no n-gram of this order, those of the text are not counted.
        counts += [mine.total() if gold else 0, gold.total(), (mine & gold).total()]
    return counts


def _chrf_score(counts: list[int]) -> float:
    """The F-score of precision and recall, each the mean over the orders of which text and reference have n-grams."""
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
    """The length of the longest common subsequence, by the bit-parallel algorithm of Hyyro (2004)."""
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

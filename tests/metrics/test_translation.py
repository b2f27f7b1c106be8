"""Scores of texts against sacrebleu and rouge-score, equal to the last digit however the texts are split."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

pytest.importorskip("sacrebleu", reason="scores of seq2seq need sacrebleu")

from sacrebleu.metrics import BLEU, CHRF

from dtrain.metrics.translation import COUNTS, count_text, nearest, signature, translation_scores

PIECES = ["一只", "狗", "在", "跑", "a man's", "dog", " . ", "(x)", "iPhone", ",", "。"]


def texts(seed: int, count: int, least: int) -> list[str]:
    draw = random.Random(seed)
    return [
        "".join(draw.choice(PIECES) + draw.choice(["", " "]) for _ in range(draw.randint(least, 12)))
        for _ in range(count)
    ]


WRITTEN, REFERENCES = texts(0, 120, 0), texts(1, 120, 1)


def counts(words: str) -> np.ndarray:
    return np.stack([count_text(*pair, words) for pair in zip(WRITTEN, REFERENCES, strict=True)])


@pytest.mark.parametrize("words", ["13a", "zh", "char", "intl", "none"])
def test_bleu_and_chrf_are_sacrebleus(words: str) -> None:
    found = translation_scores(counts(words))
    assert found["bleu"] == BLEU(tokenize=words, force=True).corpus_score(WRITTEN, [REFERENCES]).score / 100
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(WRITTEN, [REFERENCES]).score / 100, rel=1e-15)
    assert f"tok:{words}|smooth:exp" in signature(words)


def test_rouge_is_rouge_scores() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the oracle is not installed")

    class Characters:
        def tokenize(self, text: str) -> list[str]:
            return [character for character in text if not character.isspace()]

    oracle = scorer.RougeScorer(["rougeL"], tokenizer=Characters())
    by_text = [oracle.score(gold, own)["rougeL"].fmeasure for own, gold in zip(WRITTEN, REFERENCES, strict=True)]
    assert translation_scores(counts("none"))["rouge_l"] == math.fsum(by_text) / len(by_text)


def test_any_split_over_ranks_gives_the_same_scores() -> None:
    whole = counts("zh")
    expected = translation_scores(whole)
    for ranks in (1, 2, 3, 4):
        shares = [np.zeros_like(whole) for _ in range(ranks)]
        for rank, share in enumerate(shares):
            share[rank::ranks] = whole[rank::ranks]
        assert translation_scores(sum(shares)) == expected
    assert translation_scores(np.zeros((0, COUNTS), dtype=np.int64)) == {"bleu": 0.0, "chrf": 0.0, "rouge_l": 0.0}


def test_the_nearest_candidate_has_the_highest_smoothed_bleu() -> None:
    gold = "4 5 6 7 8 9"
    candidates = ["1 2 3", "4 5 6 7 8", "4 5 6 7 8 9 9", "4 5 6 7 8 9", "4 5 6 7 8 9"]
    smooth = BLEU(tokenize="none", smooth_method="add-k", smooth_value=1)
    scores = [smooth.corpus_score([text], [[gold]]).score for text in candidates]
    assert nearest(candidates, gold) == scores.index(max(scores)) == 3
    assert nearest(["", "1"], gold) == 0  # nothing in common: the first

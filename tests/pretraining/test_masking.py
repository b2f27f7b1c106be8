"""Masks: their shares, whole words, special tokens left alone, a new one each epoch, the same wherever they are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from dtrain.recipe.corpus import MaskingSpec
from dtrain.tasks.masked_lm.masking import MASKABLE, PIECE_START, WORD_START, Masker

MASK, VOCABULARY = 4, 1000
ORDINARY = np.arange(5, VOCABULARY)


def masker(ngram: int = 1, share: float = 0.15, seed: int = 3) -> Masker:
    return Masker(MaskingSpec(share=share, ngram=ngram), seed, MASK, ORDINARY)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and kinds of 600 rows of 96 tokens: words of 1 to 6 tokens, special ones among them, a cut word."""
    random = np.random.default_rng(0)
    kinds = np.zeros((600, 96), np.uint8)
    for row in kinds:
        place = 1
        row[0] = PIECE_START
        while place < 90:
            if random.random() < 0.06:
                place += 1  # [SEP]
                continue
            length = int(random.choice([1, 2, 3, 6], p=[0.4, 0.4, 0.15, 0.05]))
            row[place : place + length] = MASKABLE
            row[place] |= WORD_START
            place += length
        row[place:] = 0  # a word that the row's end has cut
    return random.integers(5, VOCABULARY, kinds.shape), kinds


def words_of(kinds: np.ndarray) -> list[list[int]]:
    """Places of each word of a row, by a plain loop."""
    words: list[list[int]] = []
    for place, kind in enumerate(kinds):
        if kind & MASKABLE:
            if kind & WORD_START:
                words.append([])
            words[-1].append(place)
    return words


@pytest.mark.parametrize("ngram", [1, 4])
def test_share_whole_words_and_special_tokens(rows: tuple[np.ndarray, np.ndarray], ngram: int) -> None:
    _, kinds = rows
    chosen = masker(ngram).choose(kinds, np.arange(len(kinds)), epoch=0)
    maskable = (kinds & MASKABLE) > 0
    assert not chosen[~maskable].any()
    assert chosen.sum() / maskable.sum() == pytest.approx(0.15, abs=0.002)  # 8,000 tokens: 3 standard errors
    for row, kind in zip(chosen, kinds, strict=True):
        for word in words_of(kind):
            assert row[word].all() or not row[word].any()
        # No row is far from its share: what goes beyond it is a part of one word, or n-gram.
        assert abs(row.sum() - 0.15 * ((kind & MASKABLE) > 0).sum()) <= 6 * ngram


def test_every_word_is_as_likely_as_any_other(rows: tuple[np.ndarray, np.ndarray]) -> None:
    """Over 400 epochs of one row, each token is masked about 15 % of the time, in long words as in short ones."""
    _, kinds = rows
    drawn = np.stack([masker().choose(kinds[:4], np.arange(4), epoch) for epoch in range(400)])
    maskable = (kinds[:4] & MASKABLE) > 0
    shares = drawn.mean(axis=0)[maskable]
    assert shares.min() > 0.07 and shares.max() < 0.24  # 4.5 standard errors of 0.018


def test_eighty_ten_ten(rows: tuple[np.ndarray, np.ndarray]) -> None:
    tokens, kinds = rows
    index = np.arange(len(kinds))
    draw = masker()
    chosen = draw.choose(kinds, index, 0)
    read = draw.replace(tokens, chosen, index, 0)
    assert read.dtype == np.int64
    assert np.array_equal(read[~chosen], tokens[~chosen])
    masked = read[chosen] == MASK
    other = ~masked & (read[chosen] != tokens[chosen])
    assert masked.mean() == pytest.approx(0.8, abs=0.015)
    assert other.mean() == pytest.approx(0.1, abs=0.012)
    # The stand-ins are drawn from the whole vocabulary and from no special token.
    stand_ins = read[chosen][other]
    assert np.isin(stand_ins, ORDINARY).all()
    assert abs(np.mean(stand_ins) - np.mean(ORDINARY)) < 40
    assert len(np.unique(stand_ins)) > 400


def test_a_mask_depends_on_seed_epoch_and_row_alone(rows: tuple[np.ndarray, np.ndarray]) -> None:
    """Whatever rows it is drawn with, in whatever order: so ranks, micro-batches and restarts change nothing."""
    tokens, kinds = rows
    index = np.arange(len(kinds))
    draw = masker(2)
    chosen = draw.choose(kinds, index, 5)
    read = draw.replace(tokens, chosen, index, 5)
    order = np.random.default_rng(1).permutation(len(kinds))
    for world in (2, 3):
        for rank in range(world):
            mine = order[rank::world]
            again = masker(2).choose(kinds[mine], mine, 5)
            assert np.array_equal(again, chosen[mine])
            assert np.array_equal(masker(2).replace(tokens[mine], again, mine, 5), read[mine])
    # Two independent draws agree on 0.15² + 0.85² = 0.745 of the tokens.
    for other in (
        draw.choose(kinds, index, 6),
        masker(2, seed=4).choose(kinds, index, 5),
        draw.choose(kinds, index + 600, 5),
    ):
        maskable = (kinds & MASKABLE) > 0
        assert (other == chosen)[maskable].mean() == pytest.approx(0.745, abs=0.01)


def test_ngrams_are_runs_of_words_within_a_piece() -> None:
    """Ten one-token words, [SEP], nine more. Lengths 1 to 3 come 3:2:1."""
    kinds = np.tile(np.array([MASKABLE | WORD_START] * 10 + [0] + [MASKABLE | WORD_START] * 9, np.uint8), (4000, 1))
    draw = masker(3, share=0.06)  # 1.14 tokens: about one n-gram a row
    starts = draw._span_starts((kinds & WORD_START) > 0, (kinds & MASKABLE) > 0, draw._key(np.arange(4000), 0)[:, None])
    assert starts[:, 0].all() and starts[:, 11].all()  # none reaches over [SEP]
    first = starts[:, 1:].argmax(axis=1) + 1
    shares = np.bincount(first, minlength=4)[1:] / len(first)
    assert shares == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=0.03)
    chosen = draw.choose(kinds, np.arange(4000), 0)
    together = (chosen[:, 1:] & chosen[:, :-1]).sum() / chosen.sum()
    alone = masker(1, share=0.06).choose(kinds, np.arange(4000), 0)
    assert together > 3 * (alone[:, 1:] & alone[:, :-1]).sum() / alone.sum()


def test_a_row_without_words_and_one_long_word() -> None:
    kinds = np.zeros((2, 12), np.uint8)
    kinds[1] = MASKABLE
    kinds[1, 0] |= WORD_START
    drawn = np.stack([masker().choose(kinds, np.arange(2), epoch) for epoch in range(2000)])
    assert not drawn[:, 0].any()
    assert np.isin(drawn[:, 1].sum(axis=1), (0, 12)).all()
    assert drawn[:, 1].mean() == pytest.approx(0.15, abs=0.025)

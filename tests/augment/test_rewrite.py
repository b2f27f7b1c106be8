"""One text into another: the three rules by extreme settings, and by counting."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from dtrain.augment.rewrite import Lexicon, rewrite
from dtrain.augment.words import Word, check_tagger, cutter
from dtrain.data.encode import MASK
from dtrain.recipe.data import Augment, Data

TEXT = [Word("the", "DT"), Word("cat", "NN"), Word("sat", "VB"), Word("down", "RB"), Word("x")]
LEXICON = Lexicon.of([TEXT, [Word("dog", "NN"), Word("dog", "NN"), Word("ran", "VB")]])


def made(seed: int = 0, **chances: Any) -> list[str]:
    spec = Augment.model_validate({"p_mask": 0, "p_pos": 0, "p_ng": 0, "tagger": "nltk"} | chances)
    return rewrite(TEXT, spec, LEXICON, Random(seed))


def test_nothing_is_changed_without_chances() -> None:
    assert made() == ["the", "cat", "sat", "down", "x"]
    assert rewrite([], Augment(), LEXICON, Random(0)) == []


def test_every_word_is_masked() -> None:
    assert made(p_mask=1) == [MASK] * 5


def test_words_are_replaced_by_their_like() -> None:
    drawn = Counter(word for seed in range(3000) for word in zip(*[iter(made(seed, p_pos=1))] * 5, strict=True))
    assert {row[0] for row in drawn} == {"the"} and {row[4] for row in drawn} == {"x"}  # without a tag: as it is
    nouns = Counter[str]()
    for row, count in drawn.items():
        nouns[row[1]] += count
    assert set(nouns) == {"cat", "dog"}
    assert nouns["dog"] / 3000 == pytest.approx(2 / 3, abs=0.03)  # as often as in the corpus


def test_chances_are_those_of_a_word() -> None:
    words = [word for seed in range(4000) for word in made(seed, p_mask=0.1, p_pos=0.2)]
    assert words.count(MASK) / len(words) == pytest.approx(0.1, abs=0.01)
    cats = [made(seed, p_mask=0.1, p_pos=0.2)[1] for seed in range(4000)]
    assert cats.count("dog") / 4000 == pytest.approx(0.2 * 2 / 3, abs=0.02)


def test_an_ngram_alone_is_kept() -> None:
    lengths = Counter(len(made(seed, p_ng=1, max_ngram=3)) for seed in range(3000))
    assert set(lengths) == {1, 2, 3}
    for count in lengths.values():
        assert count / 3000 == pytest.approx(1 / 3, abs=0.03)
    starts = {tuple(made(seed, p_ng=1, max_ngram=2)) for seed in range(300)}
    assert {("the", "cat"), ("cat", "sat"), ("sat", "down"), ("down", "x"), ("x",)} <= starts
    assert len(made(p_ng=1, max_ngram=99)) <= 5


def test_a_lexicon_does_not_depend_on_the_order_of_counting() -> None:
    words = [Word("a", "N"), Word("b", "N"), Word("c", "N")]
    one, other = Lexicon.of([words]), Lexicon.of([words[::-1]])
    assert [one.draw("N", Random(n)) for n in range(20)] == [other.draw("N", Random(n)) for n in range(20)]
    assert one.draw("V", Random(0)) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"p_mask": 0.6, "p_pos": 0.5, "tagger": "jieba"}, "p_pos: p_mask \\+ p_pos is 1.1"),
        ({"p_pos": 0.2}, "p_pos: parts of speech need a tagger"),
        ({"n_iter": 0}, "n_iter"),
    ],
)
def test_what_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment.model_validate(section)


def test_without_a_tagger_words_are_the_vocabularys() -> None:
    data = Data.model_validate({"train": "a", "augment": {}})
    cut, blank = cutter(data)
    assert blank.join(word.text for word in cut("猫在 家")) == "猫在 家"
    assert len(cut("猫在 家")) == 4
    data = Data.model_validate({"train": "a", "augment": {}, "vocabulary": {"unit": "word"}})
    cut, blank = cutter(data)
    assert [word.text for word in cut("a  cat")] == ["a", "cat"] and blank == " "


def test_jieba_tells_words_and_tags() -> None:
    check_tagger(Augment(tagger="jieba"))
    cut, blank = cutter(Data.model_validate({"train": "a", "augment": {"tagger": "jieba"}}))
    text = "北京的天气很好"
    words = cut(text)
    assert blank.join(word.text for word in words) == text
    assert Word("北京", "ns") in words and Word("天气", "n") in words

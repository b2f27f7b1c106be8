"""One text into another: the three rules by extreme settings, and by counting."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from random import Random
from types import ModuleType
from typing import Any

import pytest

from dtrain.augment.rewrite import Lexicon, rewrite
from dtrain.augment.words import Word, check_tagger, cutter
from dtrain.data.encode import MASK
from dtrain.errors import InputError
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


class FakeNltk(ModuleType):
    """nltk's part that is used; its tagger's data may not be there."""

    __spec__ = ModuleSpec("nltk", None)

    def __init__(self, version: str, there: bool) -> None:
        super().__init__("nltk")
        self.__version__, self.there = version, there

    def pos_tag(self, tokens: list[str]) -> list[tuple[str, str]]:
        if not self.there:
            raise LookupError("Resource averaged_perceptron_tagger_eng not found.")
        assert tokens  # which nltk's own raises IndexError for
        return [(token, "NN" if token == "cat" else "DT") for token in tokens]


def test_nltk_tells_tags_of_words_between_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", FakeNltk("3.9.1", there=True))
    check_tagger(Augment(tagger="nltk"))
    cut, blank = cutter(Data.model_validate({"train": "a", "augment": {"tagger": "nltk"}}))
    assert cut("the  cat's cat") == [Word("the", "DT"), Word("cat's", "DT"), Word("cat", "NN")]
    assert blank == " " and cut(" ") == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"^data\.augment\.tagger: 'nltk' needs the package nltk: pip install 'dtrain\[english\]'$"),
        (FakeNltk("3.9.1", there=False), r"python -m nltk\.downloader averaged_perceptron_tagger_eng$"),
        (FakeNltk("3.10.0", there=False), "nltk's tagger is not there"),
        (FakeNltk("3.9", there=True), r"needs nltk 3\.9\.1 or later \(found: 3\.9\)"),
        (FakeNltk("3.8.1", there=True), r"needs nltk 3\.9\.1 or later \(found: 3\.8\.1\)"),
    ],
)
def test_nltk_that_is_not_there_or_too_old(
    module: ModuleType | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nltk", module)
    with pytest.raises(InputError, match=message):
        check_tagger(Augment(tagger="nltk"))


def test_the_extra_asks_for_an_nltk_without_pickles() -> None:
    import tomllib
    from pathlib import Path

    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (nltk,) = [Requirement(text) for text in project["optional-dependencies"]["english"]]
    assert nltk.name == "nltk" and "3.9.1" in nltk.specifier and "3.9" not in nltk.specifier

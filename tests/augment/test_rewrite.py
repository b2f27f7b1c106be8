"""One text into another: the three rules by extreme settings, and by counting."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from random import Random
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
    spec = Augment(tagger="nltk").model_copy(update={"p_mask": 0.0, "p_pos": 0.0, "p_ng": 0.0} | chances)
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


@pytest.fixture
def no_tagger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nltk, which looks for its data in this empty folder."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    return tmp_path


TAGGED = (
    "the/DT cat/NN sleeps/VBZ",
    "a/DT dog/NN barks/VBZ",
    "the/DT loud/JJ dog/NN sleeps/VBZ",
    "a/DT quiet/JJ cat/NN barks/VBZ",
)


@pytest.fixture
def tagger(no_tagger: Path) -> None:
    """As nltk's own, trained on a few sentences."""
    from nltk.tag import PerceptronTagger

    trained = PerceptronTagger(load=False)
    trained.train([[tuple(word.split("/")) for word in sentence.split()] for sentence in TAGGED] * 5)
    folder = no_tagger / "taggers" / "averaged_perceptron_tagger_eng"
    folder.parent.mkdir()
    trained.save_to_json(lang="eng", loc=str(folder))


@pytest.mark.usefixtures("tagger")
def test_nltk_tells_tags_of_words_between_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tagger(Augment(tagger="nltk"))
    cut, blank = cutter(Data.model_validate({"train": "a", "augment": {"tagger": "nltk"}}))
    monkeypatch.setattr("nltk.data.path", [])  # it is read once, not for each text
    words = cut("the  quiet dog's sleeps")
    assert [word.text for word in words] == ["the", "quiet", "dog's", "sleeps"]
    assert [words[i].tag for i in (0, 1, 3)] == ["DT", "JJ", "VBZ"]
    assert blank == " " and cut(" ") == []


@pytest.mark.usefixtures("tagger")
def test_a_word_is_replaced_by_one_with_nltks_tag() -> None:
    spec = Augment.model_validate({"p_mask": 0, "p_pos": 1, "p_ng": 0, "tagger": "nltk"})
    cut, _ = cutter(Data(train="a", augment=spec))
    texts = [cut(" ".join(word.split("/")[0] for word in sentence.split())) for sentence in TAGGED]
    tags = {word.text: word.tag for text in texts for word in text}
    seen = set()
    for words in texts:
        for seed in range(20):
            changed = rewrite(words, spec, Lexicon.of(texts), Random(seed))
            assert [tags[text] for text in changed] == [word.tag for word in words]
            seen.add(tuple(changed))
    assert ("a", "cat", "sleeps") in seen and len(seen) > 10


@pytest.mark.usefixtures("no_tagger")
def test_nltk_without_its_tagger() -> None:
    with pytest.raises(
        InputError, match=r"tagger is not there: python -m nltk\.downloader averaged_perceptron_tagger_eng$"
    ):
        check_tagger(Augment(tagger="nltk"))


def test_nltk_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(InputError, match=r"'nltk' needs the package nltk: pip install 'dtrain\[english\]'$"):
        check_tagger(Augment(tagger="nltk"))


@pytest.mark.usefixtures("tagger")
@pytest.mark.parametrize("version", ["3.9", "3.8.1"])
def test_nltk_that_is_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.__version__", version)
    with pytest.raises(InputError, match=rf"needs nltk 3\.9\.1 or later \(found: {version}\)"):
        check_tagger(Augment(tagger="nltk"))


def test_the_extra_asks_for_an_nltk_without_pickles() -> None:
    import tomllib
    from pathlib import Path

    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (nltk,) = [Requirement(text) for text in project["optional-dependencies"]["english"]]
    assert nltk.name == "nltk" and "3.9.1" in nltk.specifier and "3.9" not in nltk.specifier

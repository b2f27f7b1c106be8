"""Texts split into words with their parts of speech, by the tagger that a recipe names."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from dtrain.errors import InputError
from dtrain.recipe.data import Augment, Data


class Word(NamedTuple):
    """A word and its part of speech, which is empty without a tagger; such a word is not replaced by another."""

    text: str
    tag: str = ""


Cutter = Callable[[str], list[Word]]
SAFE_NLTK = (3, 9, 1)  # earlier versions read the tagger from a pickle


def cutter(data: Data) -> tuple[Cutter, str]:
    """A function that splits a normalised text into words, and the separator with which words are joined again.

    Without a tagger, `data.vocabulary.unit` says whether white space separates words or each character is a word.

    Raises:
        InputError: the tagger's package, or its data, is not installed.
    """
    assert data.augment is not None
    if data.augment.tagger == "jieba":
        return _jieba(), ""
    if data.augment.tagger == "nltk":
        return _nltk(), " "
    if data.vocabulary.unit == "word":
        return lambda text: [Word(word) for word in text.split()], " "
    return lambda text: [Word(character) for character in text], ""


def check_tagger(augment: Augment) -> None:
    """Raises InputError where the tagger is not installed."""
    if augment.tagger == "jieba":
        _jieba()
    elif augment.tagger == "nltk":
        _nltk()


def _jieba() -> Cutter:
    try:
        import jieba
        import jieba.posseg
    except ImportError:
        raise InputError("data.augment.tagger: 'jieba' needs the package jieba: pip install jieba") from None
    jieba.setLogLevel("ERROR")
    if not jieba.dt.initialized:
        # jieba reads a cache from the common temporary folder, to which anyone can write: give it a folder of its own.
        with tempfile.TemporaryDirectory() as folder:
            jieba.dt.tmp_dir = folder
            jieba.initialize()
    return lambda text: [Word(pair.word, pair.flag) for pair in jieba.posseg.cut(text)]


def _nltk() -> Cutter:
    try:
        import nltk

        if tuple(map(int, re.findall(r"\d+", nltk.__version__)[:3])) < SAFE_NLTK:
            raise InputError(f"data.augment.tagger: 'nltk' needs nltk 3.9.1 or later (found: {nltk.__version__})")
        tagger = nltk.tag.PerceptronTagger()  # loaded once: `nltk.pos_tag` would read it from disk for every text
    except ImportError:
        raise InputError("data.augment.tagger: 'nltk' needs the package nltk: pip install 'dtrain[english]'") from None
    except LookupError:
        raise InputError(
            "data.augment.tagger: nltk's tagger is not there: python -m nltk.downloader averaged_perceptron_tagger_eng"
        ) from None
    return lambda text: [Word(word, tag) for word, tag in tagger.tag(text.split())]

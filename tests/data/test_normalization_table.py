"""The table of an exported model against the normaliser itself."""

import random
import re

import opencc
import pytest

from dtrain.data import normalization_table as tables
from dtrain.data.normalize import DROPPED, CharacterNormalizer, Normalizer
from dtrain.recipe.data import Normalization

PLAIN = dict.fromkeys(("simplify", "half_width", "control", "whitespace", "lower"), False)
ODD = "電腦憑藉乾隆乾燥麼么后面皇后ＡＢＣ１２３　，！£￡\u200b\ufe0f\t\n\x1c İǅß😀👨‍👩‍👧 著名著作 於是於戲 里裡"


def by_table(table, text):
    text = re.sub(
        table["pattern"], lambda found: table["words"][found[0]], text.translate(str.maketrans(table["before"]))
    )
    text = text.translate(str.maketrans(table["after"]))
    if table["whitespace"]:
        text = re.sub(r"\s+", " ", text).strip()
    return text.lower() if table["lower"] else text


def texts():
    """Random mixtures of all that OpenCC's dictionaries replace, and of other odd characters."""
    before, words = tables._simplification()
    pieces = [*before, *words, *"".join(words), *ODD]
    drawn = random.Random(5)
    return [ODD, "", *("".join(drawn.choices(pieces, k=drawn.randint(1, 30))) for _ in range(3000))]


@pytest.mark.parametrize("change", [{}, *({name: True} for name in PLAIN)], ids=str)
def test_texts(change):
    spec = Normalization(**({**PLAIN, **change} if change else {}))
    table, normalizer = tables.table_of_texts(spec), Normalizer(spec)
    wrong = [text for text in texts() if by_table(table, text) != normalizer(text)]
    assert wrong == []


@pytest.mark.parametrize("spec", [Normalization(), Normalization(**PLAIN), Normalization(lower=False)], ids=str)
def test_characters(spec):
    table = str.maketrans(tables.table_of_characters(spec)["characters"])
    normalizer = CharacterNormalizer(spec)
    assert [text for text in texts() if text.translate(table) != normalizer(text)] == []
    assert all(len(to) == 1 for to in table.values())
    if spec.control:
        assert "\u200b".translate(table) == DROPPED


def test_every_character_that_opencc_changes_is_in_the_table():
    before, words = tables._simplification()
    convert = opencc.OpenCC("t2s").convert
    seen = "".join(chr(code) for code in range(0x2E80, 0x32000) if not 0xD800 <= code < 0xE000)
    for start in range(0, len(seen), 1000):
        block = "\n".join(seen[start : start + 1000])  # apart, so that no two make a phrase
        expected = [words.get(before.get(c, c), before.get(c, c)) for c in block]
        assert convert(block) == "".join(expected)

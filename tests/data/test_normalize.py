"""Normalisation: golden texts, and the Unicode database's own word where it has one."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.data import Normalizer
from dtrain.recipe.data import Normalization

OFF = {"simplify": False, "half_width": False, "control": False, "whitespace": False, "lower": False}
GOLDEN = [
    ("simplify", "漢語後面的皇后，頭髮乾淨，乾坤", "汉语后面的皇后，头发干净，乾坤"),
    ("simplify", "已是简体 ABC", "已是简体 ABC"),
    ("half_width", "Ａｂｃ　１２３，！？（）：；￥～。", "Abc 123,!?():;¥~。"),
    ("control", "a\x00b\x07c\x7fd\u200be\u200df\ufeffg\u202eh\u00adi\ufe0fj", "abcdefghij"),
    ("control", "a\tb\nc", "a\tb\nc"),
    ("whitespace", " a \t\n b\u00a0\u3000c\u2028d ", "a b c d"),
    ("lower", "ABC ÀÉ Ｘ", "abc àé ｘ"),
]


@pytest.mark.parametrize(("step", "text", "expected"), GOLDEN)
def test_one_step(step: str, text: str, expected: str) -> None:
    assert Normalizer(Normalization(**{**OFF, step: True}))(text) == expected


def test_all_steps() -> None:
    text = "\ufeff　ＧＯＯＧＬＥ\u200b發佈 \t 新產品！\x00 "
    assert Normalizer(Normalization())(text) == "google发布 新产品!"


def test_control_drops_every_control_and_format_character_that_is_no_white_space() -> None:
    everything = map(chr, range(sys.maxunicode + 1))
    hidden = "".join(c for c in everything if unicodedata.category(c) in ("Cc", "Cf") and not c.isspace())
    assert len(hidden) > 200 and Normalizer(Normalization(**{**OFF, "control": True}))(hidden) == ""


def test_no_step() -> None:
    text = " Ａ\u200b 漢\t"
    assert Normalizer(Normalization(**OFF))(text) == text


def test_half_width_forms_are_those_of_unicode() -> None:
    normalizer = Normalizer(Normalization(**{**OFF, "half_width": True}))
    for code in [0x3000, *range(0xFF01, 0xFF5F), 0xFFE0, 0xFFE1, 0xFFE2, 0xFFE4, 0xFFE5, 0xFFE6]:
        assert normalizer(chr(code)) == unicodedata.normalize("NFKC", chr(code))


@settings(deadline=None)
@given(st.text())
def test_nothing_invisible_is_left_and_twice_is_once(text: str) -> None:
    normalizer = Normalizer(Normalization(simplify=False))
    once = normalizer(text)
    assert not any(unicodedata.category(character) in ("Cc", "Cf") for character in once)
    assert once == " ".join(once.split())
    assert normalizer(once) == once

"""One token a character: normalisation that keeps positions, and the tokenizers of taggers."""

from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from dtrain.data import Normalizer
from dtrain.data.characters import CharacterEncoder
from dtrain.data.normalize import DROPPED, CharacterNormalizer
from dtrain.data.tokenizers import SPECIALS
from dtrain.data.vocabularies import character_tokenizer, given_tokenizer, load_tokenizer, student_tokenizer
from dtrain.recipe.architectures.transformers import BertSpec
from dtrain.recipe.data import Normalization, Vocabulary

PLAIN = Normalization(simplify=False, half_width=False, control=False, whitespace=False, lower=False)


def test_each_character_for_itself() -> None:
    normalizer = CharacterNormalizer(Normalization())
    assert normalizer("說Ａ\u3000\t\n\u200b\x00 ß") == f"说a   {DROPPED}{DROPPED} ß"
    assert normalizer("İ") == "i"  # lower case is two characters
    assert normalizer("\ufeffＡB") == f"{DROPPED}ab"
    assert CharacterNormalizer(PLAIN)("說Ａ\u3000İ\u200b") == "說Ａ\u3000İ\u200b"
    assert CharacterNormalizer(PLAIN.model_copy(update={"lower": True}))("說ＡB\u200b") == "說ａb\u200b"


@given(st.text(), st.lists(st.booleans(), min_size=5, max_size=5))
def test_length_is_kept_and_single_characters_agree(text: str, switches: list[bool]) -> None:
    spec = Normalization(**dict(zip(Normalization.model_fields, switches, strict=True)))
    normalized = CharacterNormalizer(spec)(text)
    assert len(normalized) == len(text)
    whole = Normalizer(spec)
    for before, after in zip(text, normalized, strict=True):
        alone = whole(before)
        if len(alone) == 1:
            assert after == alone
        elif not alone:
            assert after == (" " if before.isspace() else DROPPED)
        else:
            assert after == alone[0]


def test_every_character_of_the_first_plane() -> None:
    normalizer = CharacterNormalizer(Normalization())
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000)]))
    normalized = pickle.loads(pickle.dumps(normalizer))(everything)
    assert len(normalized) == len(everything)
    assert normalized == normalizer(everything)
    assert "\u200b" not in normalized
    assert all(unicodedata.category(character) != "Cf" for character in normalized)


def test_students_read_characters(tmp_path: Path) -> None:
    tokenizer = student_tokenizer(Vocabulary(min_count=2), [["张三 a", "张三 b"]])
    tokenizer.save_pretrained(tmp_path)
    encoder = CharacterEncoder(load_tokenizer(tmp_path), Normalization())
    names = load_tokenizer(tmp_path).convert_ids_to_tokens
    ids = encoder(["张\u200b三\u3000[UNK]Ａ", "", "張"])
    assert encoder.specials == 0
    assert names(ids[0]) == ["张", "[UNK]", "三", " ", *["[UNK]"] * 6]
    assert names(ids[1]) == ["[UNK]"]
    assert names(ids[2]) == ["张"]


def test_transformers_have_special_tokens_around(tmp_path: Path) -> None:
    spec = BertSpec(type="bert", vocabulary_size=100)
    texts = [["张三 a", "张三 b"]]
    tokenizer = character_tokenizer(spec, 2, texts, lower=True)
    assert sorted(tokenizer.get_vocab()) == sorted([*SPECIALS, "张", "三", " "])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    encoder = CharacterEncoder(loaded, Normalization())
    assert encoder.specials == 2
    assert loaded.convert_ids_to_tokens(encoder(["张 x"])[0]) == ["[CLS]", "张", " ", "[UNK]", "[SEP]"]
    assert loaded.convert_ids_to_tokens(encoder([""])[0]) == ["[CLS]", "[UNK]", "[SEP]"]
    many = [[chr(0x4E00 + n) * 2 for n in range(500)]]
    assert len(character_tokenizer(spec, 2, many, lower=True)) == 100


@pytest.mark.parametrize("pretrained", [False, True])
def test_vocabulary_files_give_marked_pieces_too(tmp_path: Path, pretrained: bool) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*SPECIALS, "张", "##三", "##张", "a", "##b", "abc"]), encoding="utf-8"
    )
    if pretrained:
        BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
        spec = BertSpec(type="bert", pretrained=str(tmp_path / "bert"))
    else:
        spec = BertSpec(type="bert", vocabulary=str(tmp_path / "vocab.txt"))
    tokenizer = given_tokenizer("big", spec, 64, lower=True)
    assert tokenizer is not None
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    encoder = CharacterEncoder(loaded, Normalization())
    found = loaded.convert_ids_to_tokens(encoder(["張三aBc"])[0])
    assert found == ["[CLS]", "张", "##三", "a", "##b", "[UNK]", "[SEP]"]

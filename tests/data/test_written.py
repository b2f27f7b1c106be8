"""Tokenizers of what is written give back the very text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from dtrain.data.encode import Encoder
from dtrain.data.vocabularies import load_tokenizer, wrapped
from dtrain.data.written import (
    complete_tokenizer,
    learnt_tokenizer,
    load_ends,
    load_writer,
    load_written_count,
    save_tokenizer,
    token_counts,
    writer_of,
)
from dtrain.errors import InputError

SOURCES = ["a man's dog is running , fast", "two dogs (black) run in 2 hills - or so"] * 3
TARGETS = ["一只狗在跑。", "两只 狗,在草地上 跑 iphone 12 手机!"] * 3


@pytest.mark.parametrize("two", [False, True])
def test_texts_come_back_as_they_were(two: bool, tmp_path: Path) -> None:
    tokenizer = learnt_tokenizer(300, [SOURCES], [TARGETS], True, two=two)
    save_tokenizer(tokenizer, tmp_path)
    writer = load_writer(tmp_path)
    assert writer.get_vocab() == writer_of(tokenizer).get_vocab()
    assert (len(writer) == len(tokenizer)) == (not two)
    encoder = Encoder(writer, 40, pairs=False)
    for text in TARGETS if two else SOURCES + TARGETS:
        (ids,) = encoder([text]).ids
        assert ids[-1] == writer.sep_token_id and writer.unk_token_id not in ids
        assert writer.decode(ids, skip_special_tokens=True) == text
    assert writer.decode([writer.sep_token_id], skip_special_tokens=True) == ""
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_is_a_function_of_the_texts() -> None:
    first, second = (learnt_tokenizer(60, [SOURCES], [TARGETS], True, two=False).get_vocab() for _ in range(2))
    assert first == second and len(first) <= 60


def test_what_came_with_a_model_knows_both_sides_and_the_model_s_own_ends(tmp_path: Path) -> None:
    made = learnt_tokenizer(300, [SOURCES], [TARGETS], True, two=True)
    save_tokenizer(made, tmp_path / "model")
    given = load_tokenizer(tmp_path / "model")
    complete_tokenizer(given, str(tmp_path / "model"), {"decoder_start_token_id": 0, "eos_token_id": [3, 9]})
    save_tokenizer(given, tmp_path / "again")
    for name, ends in (("model", {"start": 2, "end": 3}), ("again", {"start": 0, "end": 3})):
        assert load_writer(tmp_path / name).get_vocab() == writer_of(made).get_vocab() != made.get_vocab()
        assert load_ends(tmp_path / name) == ends
    for config, told in (
        ({"eos_token_id": 3}, "config.json names no decoder_start_token_id"),
        ({"decoder_start_token_id": 0, "eos_token_id": 9}, r"ends no text with the token .*\(eos_token_id: 9\)"),
        ({"decoder_start_token_id": 0}, "ends no text with the token"),
    ):
        with pytest.raises(InputError, match=told):
            complete_tokenizer(given, str(tmp_path), config)


def test_a_tokenizer_that_gives_nothing_for_a_text_is_refused(tmp_path: Path) -> None:
    empty = wrapped(Tokenizer(models.BPE()), ["input_ids"])
    for config in ({"decoder_start_token_id": 0, "eos_token_id": 0}, {"decoder_start_token_id": 0}):
        with pytest.raises(InputError, match="ends no text with the token"):
            complete_tokenizer(empty, str(tmp_path), config)


@pytest.mark.parametrize("two", [False, True])
def test_tokens_are_counted_as_the_model_has_them(two: bool, tmp_path: Path) -> None:
    """Embeddings padded to a round number: students that compare token by token need as many, and those of the start."""
    made = learnt_tokenizer(300, [SOURCES], [TARGETS], True, two=two)
    save_tokenizer(made, tmp_path / "model")
    assert token_counts(made) == (len(made), len(writer_of(made)))
    assert load_written_count(tmp_path / "model") == len(writer_of(made))
    given = load_tokenizer(tmp_path / "model")
    apart = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 512} if two else {}
    config = {"decoder_start_token_id": 400, "eos_token_id": 3, "vocab_size": 448, **apart}
    complete_tokenizer(given, str(tmp_path / "model"), config)
    save_tokenizer(given, tmp_path / "again")
    assert token_counts(given) == (448, 512 if two else 448)
    assert load_written_count(tmp_path / "again") == (512 if two else 448)
    with pytest.raises(InputError, match=r"decoder_start_token_id 512, and that there are (448|512) tokens"):
        complete_tokenizer(given, str(tmp_path / "model"), config | {"decoder_start_token_id": 512})

"""Tokenizers of texts that models write: pieces that can be put together again to the very text.

    the man's dog  ->  the ▁man ' s ▁dog        WordPiece inside words, `##` in front of what continues one
    一只狗          ->  一 只 狗

A blank becomes the mark ▁ in front of the word that follows it, as SentencePiece has it; Chinese and Japanese characters,
punctuation and symbols are words by themselves. `[SEP]` ends a text, and `[CLS]` is what a decoder begins with.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dtrain.data.tokenizers import SPECIALS
from dtrain.data.vocabularies import load_tokenizer, wrapped
from dtrain.data.wordpiece import MARK, train_wordpiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLANK = "▁"
# A word by itself, with the blank in front of it.
ALONE = rf"{BLANK}?(?:[\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{P}}]|(?!{BLANK})\p{{S}})"
START, END = "[CLS]", "[SEP]"
TARGET_FILE = "target_tokenizer.json"  # in a tokenizer's folder: what is written, where it has a vocabulary of its own
_TARGET = "target_backend"  # the attribute of a tokenizer that holds it


def learnt_tokenizer(
    size: int, sources: Iterable[list[str]], targets: Iterable[list[str]], lower: bool, *, two: bool
) -> PreTrainedTokenizerFast:
    """A tokenizer with `size` tokens (fewer on little text) counted on batches of normalised texts of both sides.

    Args:
        two: a vocabulary of `size` tokens for each side.
    """
    if not two:
        return _tokenizer(_pieces(itertools.chain(sources, targets), size, lower), lower)
    tokenizer = _tokenizer(_pieces(sources, size, lower), lower)
    setattr(tokenizer, _TARGET, _backend(_pieces(targets, size, lower), lower))
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's files; those of the other side, too, where that has a vocabulary of its own."""
    tokenizer.save_pretrained(folder)
    target: Tokenizer | None = getattr(tokenizer, _TARGET, None)
    if target is not None:
        target.save(str(folder / TARGET_FILE))


def writer_of(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer of what is written, of one that was made here: the same, where both sides share a vocabulary."""
    target: Tokenizer | None = getattr(tokenizer, _TARGET, None)
    return tokenizer if target is None else _wrapped(target)


def load_writer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of what is written, from the files of a tokenizer's or a model's folder.

    Raises:
        InputError: as `load_tokenizer`.
    """
    place = folder / TARGET_FILE
    return _wrapped(Tokenizer.from_file(str(place))) if place.is_file() else load_tokenizer(folder)


def _pieces(texts: Iterable[list[str]], size: int, lower: bool) -> list[str]:
    splitter, words = _backend(SPECIALS, lower), Counter[str]()
    for batch in texts:
        for text in batch:
            plain = splitter.normalizer.normalize_str(text) if splitter.normalizer is not None else text
            words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(plain))
    return SPECIALS + [piece for piece in train_wordpiece(words, size - len(SPECIALS)) if piece not in SPECIALS]


def _tokenizer(pieces: list[str], lower: bool) -> PreTrainedTokenizerFast:
    return _wrapped(_backend(pieces, lower))


def _wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return wrapped(backend, ["input_ids", "attention_mask"], clean_up_tokenization_spaces=False)


def _backend(pieces: list[str], lower: bool) -> Tokenizer:
    numbers = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", continuing_subword_prefix=MARK))
    if lower:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="never"),
            pre_tokenizers.Split(Regex(ALONE), "isolated"),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, numbers[END])]
    )
    # Without `Strip`, which panics on a text that comes to nothing (tokenizers 0.23.3).
    backend.decoder = decoders.Sequence([decoders.Replace(MARK, ""), decoders.Replace(BLANK, " "), decoders.Fuse()])
    return backend

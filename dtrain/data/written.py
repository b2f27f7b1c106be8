"""Tokenizers of texts that models write: pieces that can be put together again to the very text.

    the man's dog  ->  the ▁man ' s ▁dog        WordPiece inside words, `##` in front of what continues one
    一只狗          ->  一 只 狗

A blank becomes the mark ▁ in front of the word that follows it, as SentencePiece has it; Chinese and Japanese characters,
punctuation and symbols are words by themselves. `[SEP]` ends a text, and `[CLS]` is what a decoder begins with.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dtrain.data.tokenizers import SPECIALS, TARGET_FILE
from dtrain.data.vocabularies import load_tokenizer, wrapped
from dtrain.data.wordpiece import MARK, train_wordpiece
from dtrain.errors import InputError
from dtrain.recipe.architectures.seq2seq import without_a_start, written_tokens
from dtrain.runfolder import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLANK = "▁"
# A word by itself, with the blank in front of it.
ALONE = rf"{BLANK}?(?:[\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{P}}]|(?!{BLANK})\p{{S}})"
START, END = "[CLS]", "[SEP]"
_TARGET = "target_backend"  # the attribute of a tokenizer that holds it
# In the folder of a tokenizer that came with a model: the ids that the model begins to write with, and ends with; where it
# has embeddings of more tokens than its tokenizer, how many it reads and writes.
ENDS_FILE = "target_ends.json"
_ENDS = "target_ends"


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
    ends: dict[str, int] | None = getattr(tokenizer, _ENDS, None)
    if ends is not None:
        write_json(folder / ENDS_FILE, ends)


def complete_tokenizer(tokenizer: PreTrainedTokenizerFast, source: str, config: Mapping[str, Any]) -> None:
    """Tell a tokenizer that came with a model what the model's folder says of the side that is written.

    Args:
        source: the folder, or the name of a hub model.
        config: its config.json.

    Raises:
        InputError: it does not say what a text begins with, or a text does not end with what it says.
    """
    place = Path(source, TARGET_FILE)
    if place.is_file():
        setattr(tokenizer, _TARGET, Tokenizer.from_file(str(place)))
    if problem := without_a_start(config):
        raise InputError(f"{source}: {problem}")
    start, end = config["decoder_start_token_id"], config.get("eos_token_id")
    writer = writer_of(tokenizer)
    last = [*writer("a")["input_ids"], None][-2]
    if last not in (end if isinstance(end, list) else [end]):
        raise InputError(
            f"{source}: its tokenizer ends no text with the token that config.json says texts end with (eos_token_id: "
            f"{end}), so that a model would not learn to end; the tokenizer lacks a post-processor that adds it"
        )
    counts = {
        "read": (int(config.get("vocab_size") or 0), len(tokenizer)),
        "written": (written_tokens(config), len(writer)),
    }
    more = {key: of_model for key, (of_model, own) in counts.items() if of_model > own}
    setattr(tokenizer, _ENDS, {"start": start, "end": last, **more})


def token_counts(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Tokens that models which read with it read, and that they write.

    Of one that came with a model they are the model's, which may have more: embeddings are often padded to a round number,
    and students that compare token by token must have as many.
    """
    ends: dict[str, int] = getattr(tokenizer, _ENDS, None) or {}
    return ends.get("read", len(tokenizer)), ends.get("written", len(writer_of(tokenizer)))


def ends_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The tokens that a written text begins with (`start`, which is none of it) and ends with (`end`)."""
    found: dict[str, int] | None = getattr(tokenizer, _ENDS, None)
    # Of a tokenizer that was made here both are there.
    return found or {"start": tokenizer.cls_token_id, "end": tokenizer.sep_token_id}


def load_ends(folder: Path) -> dict[str, int]:
    """The same of a tokenizer's folder."""
    place = folder / ENDS_FILE
    return read_json(place) if place.is_file() else ends_of(load_tokenizer(folder))


def load_written_count(folder: Path) -> int:
    """Tokens that models write which read with a tokenizer's folder; see `token_counts`."""
    return load_ends(folder).get("written", len(load_writer(folder)))


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

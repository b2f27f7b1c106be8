"""Tokenizers of target texts, which models write: the tokens can be decoded to exactly the same text.

    the man's dog  ->  the ▁man ' s ▁dog        WordPiece inside words, with `##` in front of continuing pieces
    一只狗          ->  一 只 狗

As in SentencePiece, a space becomes the mark ▁ in front of the word that follows it. Chinese and Japanese characters,
punctuation and symbols are single words. `[SEP]` ends a text, and a decoder begins with `[CLS]`.
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
# A character that is a word by itself, with the space in front of it.
ALONE = rf"{BLANK}?(?:[\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{P}}]|(?!{BLANK})\p{{S}})"
START, END = "[CLS]", "[SEP]"
_TARGET = "target_backend"  # attribute of a tokenizer: that of target texts, where they have their own vocabulary
# A file in the folder of a tokenizer that came with a model: ids of the tokens that target texts begin and end with,
# and how many tokens the model reads and writes, where it has embeddings for more tokens than the tokenizer has.
ENDS_FILE = "target_ends.json"
_ENDS = "target_ends"


def learnt_tokenizer(
    size: int, sources: Iterable[list[str]], targets: Iterable[list[str]], lower: bool, *, two: bool
) -> PreTrainedTokenizerFast:
    """A tokenizer with `size` tokens (fewer where there is little text) learnt from batches of normalised texts.

    Args:
        sources, targets: batches of the texts that are read, and of those that are written.
        two: whether sources and targets have separate vocabularies, of `size` tokens each.
    """
    if not two:
        return _tokenizer(_pieces(itertools.chain(sources, targets), size, lower), lower)
    tokenizer = _tokenizer(_pieces(sources, size, lower), lower)
    setattr(tokenizer, _TARGET, _backend(_pieces(targets, size, lower), lower))
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's files, with those for target texts where these have their own vocabulary."""
    tokenizer.save_pretrained(folder)
    target: Tokenizer | None = getattr(tokenizer, _TARGET, None)
    if target is not None:
        target.save(str(folder / TARGET_FILE))
    ends: dict[str, int] | None = getattr(tokenizer, _ENDS, None)
    if ends is not None:
        write_json(folder / ENDS_FILE, ends)


def complete_tokenizer(tokenizer: PreTrainedTokenizerFast, source: str, config: Mapping[str, Any]) -> None:
    """Add what a model's folder says about target texts to the tokenizer that came with the model.

    Args:
        source: the folder, or the name of a hub model.
        config: the content of its config.json.

    Raises:
        InputError: config.json has no start token, or the tokenizer does not end texts with the end token given there.
    """
    place = Path(source, TARGET_FILE)
    if place.is_file():
        setattr(tokenizer, _TARGET, Tokenizer.from_file(str(place)))
    if problem := without_a_start(config):
        raise InputError(f"{source}: {problem}")
    start, end = config["decoder_start_token_id"], config.get("eos_token_id")
    writer = writer_of(tokenizer)
    ids: list[int] = writer("a")["input_ids"]
    last = ids[-1] if ids else None
    if last is None or last not in (end if isinstance(end, list) else [end]):
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
    """The numbers of tokens that models with this tokenizer read and write.

    For a tokenizer that came with a model, they are the model's, which may be greater: embeddings are often padded to a
    round number, and students that are compared with the model token by token must have the same number.
    """
    ends: dict[str, int] = getattr(tokenizer, _ENDS, None) or {}
    return ends.get("read", len(tokenizer)), ends.get("written", len(writer_of(tokenizer)))


def ends_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of the token that a decoder begins with (`start`, not part of the text) and of the end token (`end`)."""
    found: dict[str, int] | None = getattr(tokenizer, _ENDS, None)
    # A tokenizer that this package made has both [CLS] and [SEP].
    return found or {"start": tokenizer.cls_token_id, "end": tokenizer.sep_token_id}


def load_ends(folder: Path) -> dict[str, int]:
    """The same as `ends_of`, from a tokenizer's folder."""
    place = folder / ENDS_FILE
    return read_json(place) if place.is_file() else ends_of(load_tokenizer(folder))


def load_written_count(folder: Path) -> int:
    """The number of tokens that models write with the tokenizer of a folder; see `token_counts`."""
    return load_ends(folder).get("written", len(load_writer(folder)))


def writer_of(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer of target texts; `tokenizer` itself where sources and targets share a vocabulary."""
    target: Tokenizer | None = getattr(tokenizer, _TARGET, None)
    return tokenizer if target is None else _wrapped(target)


def load_writer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of target texts, from the files of a tokenizer's or a model's folder.

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
    # There is no `Strip`, which panics when the decoded text is empty (tokenizers 0.23.3).
    backend.decoder = decoders.Sequence([decoders.Replace(MARK, ""), decoders.Replace(BLANK, " "), decoders.Fuse()])
    return backend

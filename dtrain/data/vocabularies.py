"""Tokenizers built from the characters, words or WordPieces of texts, or loaded from a model's folder."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dtrain.data.files import resolve_path
from dtrain.data.tokenizers import SPECIALS, bert_vocabulary, read_vocabulary
from dtrain.data.wordpiece import train_wordpiece
from dtrain.errors import InputError
from dtrain.hub import ask_hub
from dtrain.quiet import quiet_transformers
from dtrain.recipe.data import Vocabulary
from dtrain.recipe.models import EncoderSpec, ExternalSpec

BLOCK_CHARACTERS = 1 << 18  # characters of text whose words are counted at a time


def student_tokenizer(vocabulary: Vocabulary, texts: Iterable[list[str]]) -> PreTrainedTokenizerFast:
    """A tokenizer of the characters or words that occur `min_count` times in batches of `texts`, or of those of a file.

    The most frequent tokens come first, after the special tokens.
    """
    if vocabulary.file:
        tokens = read_vocabulary(vocabulary.file, "data.vocabulary.file")
    else:
        by_word = vocabulary.unit == "word"
        units = (" ".join(batch).split() if by_word else "".join(batch) for batch in texts)
        tokens = _most_frequent(units, vocabulary.min_count, vocabulary.max_size)
    tokens = [special for special in SPECIALS if special not in tokens] + tokens
    numbers = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    by_character = vocabulary.unit == "character"
    backend.pre_tokenizer = pre_tokenizers.FixedLength(1) if by_character else pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A:0 [SEP]:0 $B:1", special_tokens=[("[SEP]", numbers["[SEP]"])]
    )
    return wrapped(backend, ["input_ids", "attention_mask"])


def _most_frequent(batches: Iterable[Iterable[str]], min_count: int, max_size: int | None) -> list[str]:
    """The units that occur `min_count` times, the most frequent first; with the special tokens at most `max_size`."""
    counts = Counter[str]()
    for batch in batches:
        counts.update(batch)
    tokens = [token for token, count in counts.items() if count >= min_count]
    tokens.sort(key=lambda token: (-counts[token], token))
    return tokens[: max_size - len(SPECIALS)] if max_size else tokens


def given_tokenizer(
    name: str, spec: EncoderSpec | ExternalSpec, max_length: int, lower: bool
) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a pretrained or given model, or of a vocab.txt; None where it is to be trained on the text.

    Args:
        name: the name of the tokenizer.
        max_length: `data.max_length`.
        lower: whether a tokenizer of a vocab.txt lowercases text.

    Raises InputError where the tokenizer cannot be loaded, is unusable, or accepts fewer than `max_length` tokens.
    """
    if isinstance(spec, ExternalSpec):
        key, source = f"teachers.{name}.from: {spec.folder}", str(resolve_path(spec.folder))
    elif spec.pretrained is None:
        return _wordpiece(bert_vocabulary(spec.vocabulary, name), lower) if spec.vocabulary else None
    else:
        key, source = f"{name}: model.pretrained: {spec.pretrained}", str(spec.source)
    if not Path(source).exists():
        ask_hub()
    try:
        with quiet_transformers():  # transformers would warn of this package's own model types
            tokenizer = _auto_tokenizer(source)
    except Exception as error:
        # transformers raises errors of many types for a missing folder, a damaged file or a hub that cannot be reached.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if Path(source).exists():
            raise InputError(f"{key}: no tokenizer can be loaded: {reason}") from error
        raise InputError(
            f"{key}: no such folder here, and from the hub no tokenizer can be loaded: {reason.rstrip('.')}; without a "
            "network, name a model's folder, or take a model that needs no download, as {type: textcnn}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{key}: its tokenizer has no fast form ({type(tokenizer).__name__})")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Where the files of a vocabulary are missing, transformers silently makes a tokenizer without any word.
        raise InputError(
            f"{key}: its tokenizer knows special tokens alone: the vocabulary is missing, or it is of another type than "
            f"config.json says ({type(tokenizer).__name__})"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(f"{key}: its tokenizer has no padding token")
    if max_length > tokenizer.model_max_length:
        raise InputError(f"data.max_length: {max_length} is more than {name} takes ({tokenizer.model_max_length})")
    return tokenizer


def _auto_tokenizer(source: str, **options: Any) -> Any:
    """The tokenizer of a folder or a hub model, loaded with AutoTokenizer."""
    config = Path(source, "config.json")
    if not Path(source).exists() or (config.is_file() and b'"nezha"' in config.read_bytes()):
        # This registers NEZHA with AutoTokenizer. It takes half a second, so it is done only where it may be needed.
        importlib.import_module("dtrain.models.nezha")
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)


class WordCounter:
    """Called as `counter(texts) -> Counter`: counts of words, as a WordPiece tokenizer splits texts into words."""

    def __init__(self, lower: bool) -> None:
        self.splitter = _wordpiece(SPECIALS, lower).backend_tokenizer

    def __call__(self, texts: list[str]) -> Counter[str]:
        words = Counter[str]()
        for block in _blocks("\n".join(texts)):
            text = self.splitter.normalizer.normalize_str(block)
            words.update(word for word, _ in self.splitter.pre_tokenizer.pre_tokenize_str(text))
        return words


def _blocks(text: str) -> Iterator[str]:
    """Blocks of a text, which end with white space if they contain any: the splitter needs 500 bytes per character."""
    start = 0
    while len(text) - start > BLOCK_CHARACTERS:
        limit = start + BLOCK_CHARACTERS
        end = max(text.rfind("\n", start, limit), text.rfind(" ", start, limit)) + 1 or limit
        yield text[start:end]
        start = end
    yield text[start:]


def trained_tokenizer(spec: EncoderSpec, texts: Iterable[list[str]], lower: bool) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on batches of `texts`, with at most `vocabulary_size` tokens."""
    counter, words = WordCounter(lower), Counter[str]()
    for batch in texts:
        words.update(counter(batch))
    return tokenizer_of_words(spec, words, lower)


def tokenizer_of_words(spec: EncoderSpec, words: Mapping[str, int], lower: bool) -> PreTrainedTokenizerFast:
    """The same as `trained_tokenizer`, from counts of words (word -> count)."""
    return _wordpiece(SPECIALS + train_wordpiece(words, spec.vocabulary_size - len(SPECIALS)), lower)


def character_tokenizer(
    spec: EncoderSpec, min_count: int, texts: Iterable[list[str]], lower: bool
) -> PreTrainedTokenizerFast:
    """A transformer's tokenizer of the characters that occur `min_count` times, at most `vocabulary_size` tokens."""
    characters = _most_frequent(("".join(batch) for batch in texts), min_count, spec.vocabulary_size)
    return _wordpiece(SPECIALS + characters, lower)


def _wordpiece(tokens: list[str], lower: bool) -> PreTrainedTokenizerFast:
    """BERT's tokenizer with the vocabulary `tokens`: single Chinese characters, [CLS] a [SEP] b [SEP], token types."""
    numbers = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])],
    )
    return wrapped(backend, ["input_ids", "token_type_ids", "attention_mask"])


def wrapped(backend: Tokenizer, inputs: list[str], **options: Any) -> PreTrainedTokenizerFast:
    """A transformers tokenizer with the usual special tokens; `inputs` are the names of its models' arguments."""
    names = {f"{special[1:-1].lower()}_token": special for special in SPECIALS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names, **options)


def frame_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the special tokens around and between texts, ascending: [CLS], [SEP] and others.

    [UNK] and [MASK], which stand for a piece of text, and the padding token are not among them.
    """
    of_text = {tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id}
    return sorted(set(tokenizer.all_special_ids) - of_text)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that was saved in `folder`.

    Raises InputError where its file is missing: transformers would silently make a tokenizer without any word.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: holds no tokenizer.json")
    tokenizer = _auto_tokenizer(str(folder), local_files_only=True)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)  # the stage `prepare` saves no other kind
    return tokenizer

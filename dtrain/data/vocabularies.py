"""Tokenizers made: of characters, words or WordPieces that text is counted for, or loaded with a model."""

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

BLOCK_CHARACTERS = 1 << 18  # of a text whose words are counted at a time


def student_tokenizer(vocabulary: Vocabulary, texts: Iterable[list[str]]) -> PreTrainedTokenizerFast:
    """Characters or words seen `min_count` times in batches of `texts`, most frequent first; or those of a file."""
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
    """What is seen `min_count` times, the most frequent first; as much as fits with the special tokens."""
    counts = Counter[str]()
    for batch in batches:
        counts.update(batch)
    tokens = [token for token, count in counts.items() if count >= min_count]
    tokens.sort(key=lambda token: (-counts[token], token))
    return tokens[: max_size - len(SPECIALS)] if max_size else tokens


def given_tokenizer(
    name: str, spec: EncoderSpec | ExternalSpec, max_length: int, lower: bool
) -> PreTrainedTokenizerFast | None:
    """A pretrained or given model's tokenizer, or that of a vocab.txt; None where one is to be trained.

    Raises InputError where it cannot be loaded, or takes less than `data.max_length` tokens.
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
        with quiet_transformers():  # which takes the package's own model types for an accident
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
        # Where the files of a vocabulary are missing, transformers makes a tokenizer that knows no word, without a word.
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
    """The tokenizer of a folder or a hub model, by the Auto class, which must have heard of NEZHA where it may be one."""
    config = Path(source, "config.json")
    if not Path(source).exists() or (config.is_file() and b'"nezha"' in config.read_bytes()):
        importlib.import_module("dtrain.models.nezha")  # with transformers' models, half a second that others save
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)


class WordCounter:
    """Calls as `counter(texts) -> Counter`: how often each word comes, as a WordPiece tokenizer parts words."""

    def __init__(self, lower: bool) -> None:
        self.splitter = _wordpiece(SPECIALS, lower).backend_tokenizer

    def __call__(self, texts: list[str]) -> Counter[str]:
        words = Counter[str]()
        for block in _blocks("\n".join(texts)):
            text = self.splitter.normalizer.normalize_str(block)
            words.update(word for word, _ in self.splitter.pre_tokenizer.pre_tokenize_str(text))
        return words


def _blocks(text: str) -> Iterator[str]:
    """Pieces of a text that end with white space where there is any: the splitter takes 500 bytes for a character."""
    start = 0
    while len(text) - start > BLOCK_CHARACTERS:
        limit = start + BLOCK_CHARACTERS
        end = max(text.rfind("\n", start, limit), text.rfind(" ", start, limit)) + 1 or limit
        yield text[start:end]
        start = end
    yield text[start:]


def trained_tokenizer(spec: EncoderSpec, texts: Iterable[list[str]], lower: bool) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with `vocabulary_size` tokens (fewer on little text) of batches of `texts`."""
    counter, words = WordCounter(lower), Counter[str]()
    for batch in texts:
        words.update(counter(batch))
    return tokenizer_of_words(spec, words, lower)


def tokenizer_of_words(spec: EncoderSpec, words: Mapping[str, int], lower: bool) -> PreTrainedTokenizerFast:
    """The same, of words that are counted already."""
    return _wordpiece(SPECIALS + train_wordpiece(words, spec.vocabulary_size - len(SPECIALS)), lower)


def character_tokenizer(
    spec: EncoderSpec, min_count: int, texts: Iterable[list[str]], lower: bool
) -> PreTrainedTokenizerFast:
    """A transformer's vocabulary of the characters seen `min_count` times, `vocabulary_size` tokens at most."""
    characters = _most_frequent(("".join(batch) for batch in texts), min_count, spec.vocabulary_size)
    return _wordpiece(SPECIALS + characters, lower)


def _wordpiece(tokens: list[str], lower: bool) -> PreTrainedTokenizerFast:
    """BERT's tokenizer over `tokens`: Chinese characters apart, [CLS] a [SEP] b [SEP], token types."""
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
    """A tokenizer with the usual special tokens, as transformers has them; `inputs` are what its models read."""
    names = {f"{special[1:-1].lower()}_token": special for special in SPECIALS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names, **options)


def frame_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the tokens that stand around texts and between them: [CLS], [SEP], and what else is special, ascending.

    Not among them is what stands for a piece of text, [UNK] and [MASK], and the padding.
    """
    of_text = {tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id}
    return sorted(set(tokenizer.all_special_ids) - of_text)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`, from its files alone.

    Raises InputError where they are missing: transformers would make a tokenizer that knows no word.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: holds no tokenizer.json")
    tokenizer = _auto_tokenizer(str(folder), local_files_only=True)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)  # prepare saves no other
    return tokenizer

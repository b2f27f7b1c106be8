"""Cut texts into words by jieba, and mark the tokens that begin a word: done once, when a corpus is prepared."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from dtrain.data.files import resolve_path
from dtrain.data.lines import numbered_lines
from dtrain.data.normalize import Normalizer
from dtrain.data.problems import Problems, RowError, shortened
from dtrain.recipe.data import Normalization
from dtrain.tasks.masked_lm.masking import SENTENCE, UNKNOWN, WORD

if TYPE_CHECKING:
    import jieba
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

# Characters that are encoded at a time: the tokenizer's encodings take 700 bytes for each, far more than the ids.
ENCODE_CHARACTERS = 1 << 18
SENTENCE_END = re.compile(r"(?:[。！？；!?;…]+|\.(?=\s))[”’」』）)\"']*\s*|\n+")
ENTRY = re.compile(r"\S+( [0-9]+)?( [a-z]+)?")


@cache
def own_words() -> jieba.Tokenizer:
    """jieba with its own dictionary, which takes a second to read; other segmenters begin with copies of it."""
    import jieba

    tokenizer = jieba.Tokenizer()
    # As jieba's `initialize`, but without its cache: a file in a folder that all users share, which it reads unchecked.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


@cache
def segmenter(dictionary: str | None, normalization: Normalization | None = None) -> jieba.Tokenizer:
    """jieba with its own dictionary and the user's words, normalised as the text is. A process has one, made before it
    forks workers."""
    tokenizer = copy.copy(own_words())
    tokenizer.FREQ, tokenizer.user_word_tag_tab = dict(tokenizer.FREQ), {}  # these take up the user's words
    if dictionary is not None:
        normalizer = Normalizer(normalization) if normalization else str
        for _, line in numbered_lines(resolve_path(dictionary), dictionary, Problems()):
            word, *rest = line.split()
            if word := normalizer(word):
                tokenizer.add_word(word, *(int(count) for count in rest[:1] if count.isdigit()))
    return tokenizer


def check_dictionary(name: str, problems: Problems) -> None:
    """Every line must be `word [count [tag]]`; lines that are not become problems."""
    for number, line in numbered_lines(resolve_path(name), name, problems):
        if not ENTRY.fullmatch(line):
            problems.add_row(name, number, RowError("must be `word [count [tag]]`", f", found {shortened(line)!r}"))


def word_of_character(text: str, dictionary: str | None, normalization: Normalization | None = None) -> np.ndarray:
    """The number of the word that each character is in, int [characters]."""
    lengths = [len(word) for word in segmenter(dictionary, normalization).cut(text)]
    return np.repeat(np.arange(len(lengths)), lengths)


def sentence_of_character(text: str) -> np.ndarray:
    """The number of the sentence that each character is in, int [characters]; marks at its end belong to it."""
    numbers = np.zeros(len(text), dtype=np.int64)
    ends = [match.end() for match in SENTENCE_END.finditer(text) if match.end() < len(text)]
    numbers[ends] = 1
    return numbers.cumsum()


class TokenFlagger:
    """Called as `flagger(texts) -> (ids, flags)`: a document's token ids without special ones, and flags of each token.

    The flags tell which tokens begin a word or a sentence, and which are in a word with an unknown token. A token begins a
    word where jieba's word and the tokenizer's own (the letters between blanks, a single Chinese character) both change: so
    neither the characters of a Chinese word nor the pieces of an English one are separated. Special tokens that a text
    spells out, such as `[MASK]`, are read as ordinary text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        dictionary: str | None,
        normalization: Normalization | None = None,
    ) -> None:
        self.backend = tokenizer.backend_tokenizer
        # A tokenizer that was saved after fine-tuning still truncates and pads as it did in training.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.special = np.array(sorted(tokenizer.all_special_ids))
        self.dictionary = dictionary
        self.normalization = normalization

    def __call__(self, texts: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each text int32 [tokens] and uint8 [tokens]."""
        ids: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] for _ in texts]
        flags: list[list[np.ndarray]] = [[np.zeros(0, np.uint8)] for _ in texts]
        for number, text, encoding in self._encoded(texts):
            if encoding.ids:
                ids[number].append(np.array(encoding.ids, np.int32))
                flags[number].append(self._flags(text, encoding))
        return [np.concatenate(parts) for parts in ids], [np.concatenate(parts) for parts in flags]

    def _flags(self, text: str, encoding: Encoding) -> np.ndarray:
        first = np.array([start for start, _ in encoding.offsets])
        own = np.array(encoding.word_ids)
        words = word_of_character(text, self.dictionary, self.normalization)[first]
        sentences = sentence_of_character(text)[first]
        new = np.ones((2, len(first)), dtype=bool)
        new[0, 1:] = (np.diff(words) != 0) & (np.diff(own) != 0)
        new[1, 1:] = (np.diff(sentences) != 0) & (np.diff(own) != 0)
        new[0] |= new[1]
        word = new[0].cumsum()
        unknown = np.isin(word, word[np.isin(encoding.ids, self.special)])
        return (new[0] * WORD + new[1] * SENTENCE + unknown * UNKNOWN).astype(np.uint8)

    def _encoded(self, texts: list[str]) -> Iterator[tuple[int, str, Encoding]]:
        """The sections of all texts in order: the number of the text, the section, and its encoding."""
        parts = [(number, part) for number, text in enumerate(texts) for part in sections(text, ENCODE_CHARACTERS)]
        stretch = np.cumsum([len(part) for _, part in parts]) // ENCODE_CHARACTERS
        for some in np.split(np.arange(len(parts)), np.flatnonzero(np.diff(stretch)) + 1):
            encodings = self.backend.encode_batch([parts[place][1] for place in some], add_special_tokens=False)
            for place, encoding in zip(some, encodings, strict=True):
                yield *parts[place], encoding


def sections(text: str, limit: int) -> Iterator[str]:
    """The text in parts of at most `limit` characters that end where sentences do; a longer sentence is cut.

    Neither jieba nor BERT's tokenizer has words that go over the end of a sentence, so nothing else changes.
    """
    ends = np.array([match.end() for match in SENTENCE_END.finditer(text)]) if len(text) > limit else np.zeros(0, int)
    start = 0
    while len(text) - start > limit:
        place = np.searchsorted(ends, start + limit, side="right") - 1
        end = int(ends[place]) if place >= 0 and ends[place] > start else start + limit
        yield text[start:end]
        start = end
    yield text[start:]

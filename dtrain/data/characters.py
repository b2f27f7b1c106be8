"""Texts to token ids one character at a time: token i stands for character i, whatever the character is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtrain.data.normalize import DROPPED, CharacterNormalizer
from dtrain.errors import DtrainError
from dtrain.recipe.data import Normalization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class CharacterEncoder:
    """Called as `encoder(texts) -> ids`; can be pickled for worker processes.

    Each normalised character gets the id of its token in the vocabulary; without one, that of its form inside a word
    (with ##); without either, that of [UNK]. A transformer's tokenizer adds [CLS] in front and [SEP] behind (`specials`
    is 2 then, else 0). An empty text becomes one [UNK], so that no row is empty.

    Raises DtrainError for a tokenizer without [UNK], or with other special tokens around a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, normalize: Normalization) -> None:
        self.specials: int = tokenizer.num_special_tokens_to_add()
        if self.specials not in (0, 2) or tokenizer.unk_token_id is None:
            raise DtrainError(f"{type(tokenizer).__name__}: tagging needs [CLS] and [SEP], or neither, and [UNK]")
        self.before = [tokenizer.cls_token_id] if self.specials else []
        self.after = [tokenizer.sep_token_id] if self.specials else []
        self.normalizer = CharacterNormalizer(normalize)
        self.unknown: int = tokenizer.unk_token_id
        vocabulary = tokenizer.get_vocab()
        self.numbers = {
            token[2:]: number for token, number in vocabulary.items() if len(token) == 3 and token[:2] == "##"
        }
        self.numbers |= {token: number for token, number in vocabulary.items() if len(token) == 1}
        self.numbers[DROPPED] = self.unknown

    def __call__(self, texts: list[str]) -> list[list[int]]:
        find, unknown = self.numbers.get, self.unknown
        return [
            [*self.before, *(find(character, unknown) for character in self.normalizer(text) or DROPPED), *self.after]
            for text in texts
        ]

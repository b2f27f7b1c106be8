"""Texts to token ids: truncated, with a tokenizer's own special tokens, never padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASK = "▒"  # encoded as [MASK] where a text holds it; a character that no word is made of


@dataclass
class Encoded:
    """A batch: token ids and token types (None where the model takes none) a row; whether a row was cut."""

    ids: list[list[int]]
    types: list[list[int]] | None
    cut: list[bool]


class Encoder:
    """Calls as `encoder(texts, texts_b) -> Encoded`; can be sent to worker processes.

    Pairs are truncated longest first to `max_length` tokens in all. Special tokens are never read from text: a
    title that spells "[SEP]" stays a title. A row without any token becomes one [UNK], so that none is empty.
    Only `MASK`, which augmentation writes, is read as the tokenizer's mask token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int, pairs: bool) -> None:
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
        self.unknown: int = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id
        # It has to be a token by itself: Chinese has no blanks between words, and WordPiece would join it to the next one.
        self.backend.add_tokens([AddedToken(MASK, normalized=False, special=False)])
        self.blank: int | None = self.backend.token_to_id(MASK)
        self.mask: int = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else self.unknown
        self.types = pairs and "token_type_ids" in tokenizer.model_input_names
        self.backend.encode_special_tokens = True

    def __call__(self, texts: list[str], texts_b: list[str] | None = None) -> Encoded:
        # Looked at in every call, because pickling for a worker process loses it; set once, because no other thread may
        # be encoding then.
        if not self.backend.encode_special_tokens:
            self.backend.encode_special_tokens = True
        batch = texts if texts_b is None else list(zip(texts, texts_b, strict=True))
        encodings = self.backend.encode_batch(batch)
        return Encoded(
            ids=[self._ids(encoding, row) or [self.unknown] for encoding, row in zip(encodings, batch, strict=True)],
            types=[encoding.type_ids or [0] for encoding in encodings] if self.types else None,
            cut=[bool(encoding.overflowing) for encoding in encodings],
        )

    def spans(self, texts: list[str], texts_b: list[str] | None = None) -> list[list[tuple[int, int, int]]]:
        """Where tokens stand, as (0 for the first text or 1 for the second, first character, the one behind the last).

        A token that no text holds, as [CLS] and [SEP] around it, is (-1, 0, 0). Rows have as many as `ids` of a call.
        """
        self.backend.encode_special_tokens = True
        batch = texts if texts_b is None else list(zip(texts, texts_b, strict=True))
        found = []
        for encoding in self.backend.encode_batch(batch):
            places = zip(encoding.sequence_ids, encoding.offsets, strict=True)
            spans = [(-1, 0, 0) if which is None else (which, *offsets) for which, offsets in places]
            found.append(spans or [(-1, 0, 0)])
        return found

    def _ids(self, encoding: Encoding, row: str | Sequence[str]) -> list[int]:
        if not any(MASK in text for text in ([row] if isinstance(row, str) else row)):
            return encoding.ids
        return [self.mask if number == self.blank else number for number in encoding.ids]

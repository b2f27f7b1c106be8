"""Texts to token ids: truncated, with the tokenizer's special tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Encoding, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASK = "▒"  # encoded as [MASK] wherever a text has it; no word has this character


@dataclass
class Encoded:
    """Token ids and token types of each row (None where the model takes no types), and whether it was truncated."""

    ids: list[list[int]]
    types: list[list[int]] | None
    cut: list[bool]


class Encoder:
    """Called as `encoder(texts, texts_b) -> Encoded`; can be pickled for worker processes.

    A pair is truncated to `max_length` tokens in all, the longer text first. Special tokens are never read from text:
    "[SEP]" in a title is encoded like other text. Only `MASK`, which augmentation writes, becomes the tokenizer's mask
    token. A row without any token becomes one [UNK], so that none is empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int, pairs: bool) -> None:
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
        self.unknown: int = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id
        # MASK has to be a token by itself: Chinese has no spaces, and WordPiece would join it to the next character.
        self.backend.add_tokens([AddedToken(MASK, normalized=False, special=False)])
        self.blank: int | None = self.backend.token_to_id(MASK)
        self.mask: int = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else self.unknown
        self.types = pairs and "token_type_ids" in tokenizer.model_input_names
        self.backend.encode_special_tokens = True

    def __call__(self, texts: list[str], texts_b: list[str] | None = None) -> Encoded:
        # The setting is checked in every call, because pickling for a worker process loses it. It is set only if lost,
        # because no other thread may be encoding while it is set.
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
        """Where the tokens of each row stand, as (0 for the first text or 1 for the second, start, end exclusive).

        A token that is in no text, such as [CLS] or [SEP], has (-1, 0, 0). A row has as many spans as it has ids.
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

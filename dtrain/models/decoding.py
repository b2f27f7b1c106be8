"""Calling an encoder-decoder: it scores given targets, or generates its own.

source ──▶ encoder ──▶ decoder ── teacher forcing ──▶ logits of each token of a given target
                          └───── generate, with its cache of keys and values ──▶ targets, greedily or by a beam

This is apart from `models.seq2seq`, which builds and loads the models, because that imports transformers'
`modeling_utils`. The import takes half a second, which ranks with small students save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NO_TOKEN = -1  # fills generated targets after their end


@dataclass(frozen=True)
class Decoding:
    """Decoding settings of `generate`, which uses a cache of keys and values: greedy decoding or beam search.

    Attributes:
        max_length: the most tokens of a target, its end token included.
        beam: number of hypotheses; 1 decodes greedily.
        candidates: how many of the best hypotheses of a beam are returned.
        length_penalty: a hypothesis of n tokens is scored by its log-probability divided by n to this power.
    """

    max_length: int
    beam: int = 1
    candidates: int = 1
    length_penalty: float = 1.0

    def __str__(self) -> str:
        """The settings in words; a knowledge store of generated targets records them."""
        search = f"beam {self.beam}, {self.candidates} candidates, length penalty {self.length_penalty:g}"
        return f"{search}, at most {self.max_length} tokens"

    def options(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        found: dict[str, Any] = {"max_new_tokens": self.max_length, "num_beams": self.beam, "do_sample": False}
        # A model's generation_config.json may ask for several sequences, which greedy decoding cannot return.
        found["num_return_sequences"] = self.candidates if self.beam > 1 else 1
        if self.beam > 1:
            found["length_penalty"] = self.length_penalty
        return found | {"return_dict_in_generate": True, "output_scores": self.beam > 1, "use_cache": True}


@dataclass(frozen=True)
class Written:
    """The outputs of an encoder-decoder for B sources; None for those that were not asked for.

    Attributes:
        logits: float [B, T, V], of each token of the given targets.
        mask: bool [B, T], the tokens of those targets.
        tokens: int64 [B, candidates, max_length], generated targets without the start token and with the end token,
            then NO_TOKEN.
        scores: float [B, candidates], scores of a beam's hypotheses, the best first.
    """

    logits: Tensor | None = None
    mask: Tensor | None = None
    tokens: Tensor | None = None
    scores: Tensor | None = None


class Writer(nn.Module):
    """An encoder-decoder that scores given targets (teacher forcing), generates its own, or both.

    Args:
        forced: whether given targets are scored.
        decoding: how targets are generated; None: they are not.
    """

    def __init__(self, model: nn.Module, *, forced: bool = False, decoding: Decoding | None = None) -> None:
        super().__init__()
        self.model, self.forced, self.decoding = model, forced, decoding
        self.train(model.training)  # else a caller that restores this module's mode turns on the model's dropout

    @property
    def config(self) -> Any:
        """The configuration of the model inside."""
        return self.model.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Written:
        """Arguments as `EncodedSplit.collate` gives them: int64 [B, L] twice, int64 [B, T] and int64 [B]."""
        logits = mask = tokens = scores = None
        if self.forced and decoder_input_ids is not None and target_lengths is not None:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
            logits = self.model(**given, use_cache=False).logits
            mask = torch.arange(decoder_input_ids.shape[1], device=input_ids.device) < target_lengths[:, None]
        if self.decoding is not None:
            tokens, scores = written(self.model, input_ids, attention_mask, self.decoding)
        return Written(logits, mask, tokens, scores)


def written(model: Any, input_ids: Tensor, attention_mask: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor | None]:
    """Generate targets for B sources: `tokens` and `scores` as in `Written`; no scores without a beam."""
    found = model.generate(input_ids=input_ids, attention_mask=attention_mask, **decoding.options())
    kept = decoding.candidates if decoding.beam > 1 else 1
    sequences = found.sequences[:, 1:]  # without the start
    tokens = sequences.new_full((len(sequences), decoding.max_length), NO_TOKEN)
    tokens[:, : sequences.shape[1]] = sequences
    ends = torch.tensor(_ends(model), device=tokens.device)
    ended = torch.isin(tokens, ends).long()
    tokens[(ended.cumsum(1) - ended) > 0] = NO_TOKEN  # everything after the first end token is padding
    shape = (len(input_ids), kept)
    scores = found.sequences_scores.view(shape) if decoding.beam > 1 else None
    return tokens.view(*shape, -1), scores


def _ends(model: Any) -> list[int]:
    end = model.generation_config.eos_token_id
    return end if isinstance(end, list) else [end]

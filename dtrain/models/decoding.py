"""An encoder-decoder that scores given targets, or writes its own.

source ──▶ encoder ──▶ decoder ── teacher forcing ──▶ logits of each token of a given target
                          └───── generate, with its cache of keys and values ──▶ targets, greedily or by a beam

Apart from `models.seq2seq`, which builds and loads them: with that comes transformers' `modeling_utils`, half a second that
ranks of small students do without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NO_TOKEN = -1  # in what was written, behind its end


@dataclass(frozen=True)
class Decoding:
    """How a target is looked for: `generate` with a cache, and the most likely token at each place, or a beam.

    Attributes:
        max_length: tokens of a target at most, its end included.
        beam: hypotheses at a time; 1: greedily.
        candidates: of a beam, how many of the best are kept.
        length_penalty: a hypothesis of n tokens is scored by its log-probability over n to this power.
    """

    max_length: int
    beam: int = 1
    candidates: int = 1
    length_penalty: float = 1.0

    def __str__(self) -> str:
        """For stores, which are of one search."""
        search = f"beam {self.beam}, {self.candidates} candidates, length penalty {self.length_penalty:g}"
        return f"{search}, at most {self.max_length} tokens"

    def options(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        found: dict[str, Any] = {"max_new_tokens": self.max_length, "num_beams": self.beam, "do_sample": False}
        # A model's generation_config.json may ask for several, which greedy decoding has not.
        found["num_return_sequences"] = self.candidates if self.beam > 1 else 1
        if self.beam > 1:
            found["length_penalty"] = self.length_penalty
        return found | {"return_dict_in_generate": True, "output_scores": self.beam > 1, "use_cache": True}


@dataclass(frozen=True)
class Written:
    """What an encoder-decoder answers to B sources.

    Attributes:
        logits: float [B, T, V], of each token of the given targets.
        mask: bool [B, T], the tokens of those targets.
        tokens: int64 [B, candidates, max_length], what it writes, without the start and with its end; NO_TOKEN behind.
        scores: float [B, candidates], of what it writes by a beam, the best first.
    """

    logits: Tensor | None = None
    mask: Tensor | None = None
    tokens: Tensor | None = None
    scores: Tensor | None = None


class Writer(nn.Module):
    """An encoder-decoder that scores given targets, writes its own, or both.

    Args:
        forced: score the targets that are given.
        decoding: write; None: does not.
    """

    def __init__(self, model: nn.Module, *, forced: bool = False, decoding: Decoding | None = None) -> None:
        super().__init__()
        self.model, self.forced, self.decoding = model, forced, decoding
        self.train(model.training)  # a new module trains: who asks it would leave dropout on in the model

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Written:
        """Arguments as `EncodedSplit.collate` gives them."""
        logits = mask = tokens = scores = None
        if self.forced and decoder_input_ids is not None and target_lengths is not None:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
            logits = self.model(**given, use_cache=False).logits
            mask = torch.arange(decoder_input_ids.shape[1], device=input_ids.device) < target_lengths[:, None]
        if self.decoding is not None:
            tokens, scores = written(self.model, input_ids, attention_mask, self.decoding)
        return Written(logits, mask, tokens, scores)


def written(model: Any, input_ids: Tensor, attention_mask: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor | None]:
    """What a model writes for B sources, as `Written` has it; scores of a beam alone."""
    found = model.generate(input_ids=input_ids, attention_mask=attention_mask, **decoding.options())
    kept = decoding.candidates if decoding.beam > 1 else 1
    sequences = found.sequences[:, 1:]  # without the start
    tokens = sequences.new_full((len(sequences), decoding.max_length), NO_TOKEN)
    tokens[:, : sequences.shape[1]] = sequences
    ends = torch.tensor(_ends(model), device=tokens.device)
    ended = torch.isin(tokens, ends).long()
    tokens[(ended.cumsum(1) - ended) > 0] = NO_TOKEN  # what is behind the first end is padding
    shape = (len(input_ids), kept)
    scores = found.sequences_scores.view(shape) if decoding.beam > 1 else None
    return tokens.view(*shape, -1), scores


def _ends(model: Any) -> list[int]:
    end = model.generation_config.eos_token_id
    return end if isinstance(end, list) else [end]

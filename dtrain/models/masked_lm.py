"""Masked language models that score the vocabulary at masked positions only, for single texts and for pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class _AroundLM(nn.Module):
    """A wrapper of a BERT or NEZHA with its pre-training head, transformers' own model (`lm`), which is what is saved.

    The projection onto the vocabulary is by far the head's largest product and largest result; computed for 15 % of the
    positions, it takes 15 % of the time and memory. Scores are those of `lm` at these positions.
    """

    wrapped_as = "lm."  # prefix of the names of parameters here, which their names in the model folder lack

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm

    @property
    def config(self) -> Any:
        """transformers' configuration of the model inside."""
        return self.lm.config

    def _vocabulary(self, states: Tensor, places: Tensor) -> Tensor:
        """[B, L, H] and int64 [M] -> [M, V]."""
        return self.lm.cls.predictions(states.flatten(0, 1)[places])  # type: ignore[operator, union-attr]


class MaskedLM(_AroundLM):
    """A model with the head for masked tokens alone."""

    def forward(self, input_ids: Tensor, places: Tensor, pieces: Tensor | None = None) -> Tensor:
        """Scores over the vocabulary, [M, V].

        Args:
            input_ids: int64 [B, L], no padding.
            places: int64 [M], positions in the flattened [B · L].
            pieces: int64 [B, L], the number of the piece that each token belongs to, ascending; tokens then attend to
                their own piece alone, and BERT's positions are counted from each piece's first token.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if pieces is not None:
            same = pieces[:, :, None] == pieces[:, None, :]
            if self.config.model_type == "bert":
                inputs |= {"attention_mask": same[:, None], "position_ids": _within(pieces)}
            else:
                inputs["attention_mask"] = same
        return self._vocabulary(self.lm.base_model(**inputs).last_hidden_state, places)


class PairedLM(_AroundLM):
    """A model with the heads for masked tokens and for next-sentence prediction, the latter on the pooler's output."""

    def forward(self, input_ids: Tensor, places: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Scores over the vocabulary, [M, V], and next-sentence scores, [B, 2]: text B follows text A, or it does not.

        Args:
            input_ids: int64 [B, L], no padding.
            places: int64 [M], positions in the flattened [B · L].
            segments: int64 [B, L], 0 for text A and 1 for text B.
        """
        encoded = self.lm.base_model(input_ids=input_ids, token_type_ids=segments)
        follows = self.lm.cls.seq_relationship(encoded.pooler_output)  # type: ignore[operator, union-attr]
        return self._vocabulary(encoded.last_hidden_state, places), follows


def _within(pieces: Tensor) -> Tensor:
    """The position of each token in its piece, int64 [B, L]."""
    places = torch.arange(pieces.size(1), device=pieces.device).expand_as(pieces)
    first = torch.ones_like(pieces, dtype=torch.bool)
    first[:, 1:] = pieces[:, 1:] != pieces[:, :-1]
    return places - torch.where(first, places, 0).cummax(dim=1).values

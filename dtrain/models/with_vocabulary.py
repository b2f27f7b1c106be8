"""A model's transformer with a masked-language-model head that is not a part of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from dtrain.models.inside import trunk_of


@dataclass(frozen=True)
class PlainTextOutput:
    """`vocabulary`: float [M, V] at the places that were asked for; None without places or without a head."""

    vocabulary: Tensor | None


class WithVocabulary(nn.Module):
    """A model's transformer on rows of plain text; the rest of the model is not called.

    Args:
        model: has a BERT or NEZHA in it, or is one.
        head: of a masked language model, as `vocabulary_head` makes it; None: no scores.
        vocabulary: this many tokens are scored, the first ones; None: all.
    """

    wrapped_as = "model."  # prefix of the names of parameters here, which their names in the model folder lack

    def __init__(self, model: nn.Module, head: Any = None, vocabulary: int | None = None) -> None:
        super().__init__()
        self.model, self.head, self.vocabulary = model, head, vocabulary

    @property
    def config(self) -> Any:
        """The configuration of the model inside."""
        return self.model.config

    def forward(self, input_ids: Tensor, places: Tensor | None = None) -> PlainTextOutput:
        """The scores at `places`; every token attends to all tokens of its row.

        Args:
            input_ids: int64 [B, L], no padding.
            places: int64 [M], positions in the flattened [B · L] that are to be scored.
        """
        states = trunk_of(self.model)(input_ids=input_ids).last_hidden_state
        if self.head is None or places is None:
            return PlainTextOutput(None)
        scores = self.head.predictions(states.flatten(0, 1)[places])
        return PlainTextOutput(scores if self.vocabulary is None else scores[:, : self.vocabulary])


def vocabulary_head(model: nn.Module, start: Any = None) -> Any:
    """A new head for the transformer in a model; its projection onto the vocabulary is tied to the token embeddings.

    Args:
        start: a head of another model, whose weights are copied first if all have the same shapes.
    """
    trunk = trunk_of(model)
    head: Any = AutoModelForMaskedLM.from_config(trunk.config).cls
    if start is not None:
        own, others = head.predictions.state_dict(), start.predictions.state_dict()
        if {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in others.items()}:
            head.predictions.load_state_dict(others)
    head.predictions.decoder.weight = trunk.embeddings.word_embeddings.weight
    return head

"""What all taggers share: emissions from the states of characters, and decoding from emissions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.models.crf import LinearChainCRF
from dtrain.models.output import TaggerOutput


class Emissions(nn.Linear):
    """A linear layer in float32, also under autocast and where an engine keeps its weights in 16 bits."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., H] -> float32 [..., T]."""
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight.float(), self.bias.float())


class SequenceTagger(nn.Module):
    """Emissions and a CRF, or a softmax for each character, over the states [B, N, H] that a subclass computes.

    Emissions and all that follows are float32, also under autocast.

    Args:
        tags: their names (BIOES); T of them.
        features: H.
        crf: whether a CRF decides on whole sequences; else each character is classified by itself.
        constrain: whether the CRF makes invalid tag sequences impossible.

    Raises:
        ValueError: for `constrain` without a CRF.
    """

    config: dict[str, Any]

    def __init__(self, *, tags: list[str], features: int, crf: bool, constrain: bool) -> None:
        super().__init__()
        if constrain and not crf:
            raise ValueError("constrain: needs a CRF")
        self.emissions = Emissions(features, len(tags))
        self.crf = LinearChainCRF(tags, constrain) if crf else None

    def answer(self, states: Tensor, mask: Tensor, tags: Tensor | None, marginals: bool) -> TaggerOutput:
        """What `forward` returns, for states [B, N, H], mask bool [B, N] and tags int64 [B, N], -1 for no tag."""
        logits = self.emissions(states)
        if self.crf is not None:
            return TaggerOutput(logits, mask, *self.crf(logits, mask, tags, marginals))
        nll = None if tags is None else self.nll(logits, mask, tags)
        return TaggerOutput(logits, mask, nll, torch.log_softmax(logits, -1) if marginals else None)

    def nll(self, emissions: Tensor, mask: Tensor, tags: Tensor) -> Tensor:
        """-log p(tags | x) summed over characters, float32 [B]; 0 for rows without tags. Shapes as in `answer`."""
        if self.crf is not None:
            return self.crf(emissions, mask, tags, False)[0]
        losses = functional.cross_entropy(emissions.flatten(0, 1), tags.flatten(), ignore_index=-1, reduction="none")
        return losses.view_as(tags).sum(1)

    def log_marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """log p(t_i = t | x), [B, N, T] float32, of emissions [B, N, T] and mask bool [B, N]."""
        return torch.log_softmax(emissions, -1) if self.crf is None else self.crf.log_marginals(emissions, mask)

    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """The best tags, int64 [B, N], -1 at padding, of emissions [B, N, T] and mask bool [B, N]."""
        if self.crf is None:
            return emissions.argmax(-1).masked_fill(~mask, -1)
        return self.crf.best_path(emissions, mask)

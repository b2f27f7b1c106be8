"""One state per token from the states of all layers of an encoder: the last, the last four, or a learned mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONCATENATED = 4


class DynamicFusion(nn.Module):
    """h = γ Σ_i softmax(α)_i h_i over the outputs of all transformer layers, the embedding layer not among them.

    α, one number per layer, and γ are trained; at first all layers have equal weights and γ is 1. (ELMo's scalar mix,
    Peters et al. 2018, eq. 1, which the NEZHA tagger takes over as its eq. 11 and 12.)
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, states: tuple[Tensor, ...]) -> Tensor:
        """The outputs of the layers, each [B, L, H] -> [B, L, H] in their dtype."""
        weights = self.gamma * torch.softmax(self.alpha, dim=0)
        fused = weights[0] * states[0]
        for weight, state in zip(weights[1:], states[1:], strict=True):  # a stack would copy every layer
            fused = fused + weight * state
        return fused.to(states[0].dtype)


class Concatenation(nn.Module):
    """The outputs of the last four transformer layers side by side (Devlin et al. 2018, section 5.3)."""

    def forward(self, states: tuple[Tensor, ...]) -> Tensor:
        """The outputs of the layers, each [B, L, H] -> [B, L, 4 H]."""
        return torch.cat(states[-CONCATENATED:], dim=-1)

"""Losses on the states inside two transformers that read the same tokens: values a row [B], means over its tokens.

Each gets lists, one tensor for each pair of layers (losses/layers.py), the student's already of its teacher's width
where `mapped` says so. Recipes are checked against their signatures, for which torch is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dtrain.losses.registry import register
from dtrain.losses.states import squared_difference
from dtrain.losses.torch_later import torch

if TYPE_CHECKING:
    from torch import Tensor


@register("hidden_states", "teachers.hidden_states", "token_mask", mapped=True)
def hidden_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean_(l, g(l)) mean_i ||h_s W - h_t||^2 / H over pairs of layers and a row's tokens i (TinyBERT, 1909.10351, eq. 8).

    Args:
        student: for each pair, float [B, N, H] of the student's layer, H its teacher's width.
        teacher: for each pair, float [B, N, H] of the teacher's layer.
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([squared_difference(own, theirs, token_mask) for own, theirs in pairs]).mean(0)

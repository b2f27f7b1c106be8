"""Losses on where a layer is active, how one layer follows from another, and which rows are alike.

Each takes lists, one tensor for each pair of layers (losses/layers.py), and returns one value per row, [B]. Recipes are
checked against the signatures without importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dtrain.losses.layers import EncoderShape, Pairs
from dtrain.losses.outputs import full_precision
from dtrain.losses.over_rows import AllRows, pooled, similarity_difference
from dtrain.losses.over_tokens import mean_over_layers
from dtrain.losses.registry import OF_TEACHERS, register
from dtrain.losses.relations import activation_maps, flow_difference, gradient_difference
from dtrain.losses.torch_later import functional, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@register("hidden_states", "teachers.hidden_states", "token_mask")
def attention_transfer(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    token_mask: Tensor,
    *,
    power: Positive = 2.0,
    beta: Positive = 1.0,
) -> Tensor:
    """mean_(l, g(l)) beta/2 || Q_s / ||Q_s|| - Q_t / ||Q_t|| ||_2, Q_i = sum_c |h_ic|^p at a row's tokens i (1612.03928, eq. 2).

    It compares where a layer is active, whatever its width: neither widths nor heads have to agree. Layers of BERT and
    NEZHA end with a normalisation that gives every token the same sum of squares, apart from its trained scales and
    shifts: with p = 2 the maps say little there, with p = 4 they show how much a token stands out. For the form on
    gradients see `gradient_transfer`.

    Args:
        student: for each pair, float [B, N, Hs] of the student's layer.
        teacher: for each pair, float [B, N, Ht] of the teacher's layer.
        token_mask: bool [B, N].
        power: p.
        beta: the factor; the paper takes 1000 divided by the number of positions of a batch.

    Returns:
        float [B].
    """
    pairs = zip(student, teacher, strict=True)
    return beta / 2 * mean_over_layers(activation_maps(s, t, token_mask, power) for s, t in pairs)


def _map_of_gradients(widths: Mapping[str, int], *, beta: float) -> nn.Module:
    own, theirs = widths["embeddings"], widths[f"{OF_TEACHERS}embedding_gradients"]
    return torch.nn.Identity() if own == theirs else torch.nn.Linear(own, theirs, bias=False)


@register(
    "embeddings",
    "logits",
    "labels",
    "teachers.embedding_gradients",
    "token_mask",
    weights=_map_of_gradients,
    twice=True,
)
def gradient_transfer(
    width_map: nn.Module,
    embeddings: Sequence[Tensor],
    logits: Tensor,
    labels: Tensor,
    teacher_gradients: Sequence[Tensor],
    token_mask: Tensor,
    *,
    beta: Positive = 1.0,
) -> Tensor:
    """beta/2 || dCE_s/de W - dCE_t/de ||_2 over a row's tokens and channels, e the input of the first layer (1612.03928, eq. 4).

    CE is the cross-entropy of a row with its label; rows without one are left out. W is a trained linear map where the
    widths differ. Training needs second derivatives of the student, so that its attention is not fused and a step takes
    about three times as long.

    Args:
        width_map: W.
        embeddings: one tensor, float [B, N, Hs], from which the logits were computed.
        logits: float [B, C].
        labels: int64 [B], in [0, C) also where there is no label.
        teacher_gradients: one tensor, float [B, N, Ht].
        token_mask: bool [B, N].
        beta: the factor.

    Returns:
        float [B].
    """
    with torch.autocast(logits.device.type, enabled=False):
        errors = functional.cross_entropy(full_precision(logits), labels, reduction="sum")
        (own,) = torch.autograd.grad(errors, list(embeddings), create_graph=True)
        dtype = next((p.dtype for p in width_map.parameters()), own.dtype)
        return beta / 2 * gradient_difference(width_map(own.to(dtype)), teacher_gradients[0], token_mask)


def _two_at_least(student: EncoderShape, teacher: EncoderShape, pairs: Pairs, parameters: Mapping[str, Any]) -> str:
    if len(pairs) > 1:
        return ""
    return f"layers: a flow leads from one layer to another: two pairs at least, found {len(pairs)}"


@register("hidden_states", "teachers.hidden_states", "token_mask", mapped=True, fits=_two_at_least)
def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean over neighbours in `layers` of 1/H^2 ||G_t - G_s||_F^2, G = F1^T F2 / L of a row's L tokens (Yim et al. 2017, eq. 1 and 2).

    The flow of solution procedure is how the later of two layers follows from the earlier. Two pairs of layers give one
    flow, three give two.

    Args:
        student: for each pair, float [B, N, H] of the student's layer, H its teacher's width.
        teacher: for each pair, float [B, N, H] of the teacher's layer.
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    flows = zip(pairwise(student), pairwise(teacher), strict=True)
    return mean_over_layers(flow_difference(*own, *theirs, token_mask) for own, theirs in flows)


@register("hidden_states", "teachers.hidden_states", "token_mask", "all_rows", layers="last")
def similarity_preserving(
    student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor, all_rows: AllRows
) -> Tensor:
    """mean_(l, g(l)) 1/B sum_j (G_t - G_s)_ij^2 of row i, G = rownorm(A A^T), A [B, H] the means of states over a row's tokens (1907.09682, eq. 1 to 4).

    It compares which rows of the *global* batch, over all ranks, are alike. Summed over rows and divided by their
    number B, it is ||G_t - G_s||_F^2 / B^2. So a batch cannot be split into several micro-batches (`accumulation: 1`).

    Args:
        student: for each pair, float [B, N, Hs] of the student's layer.
        teacher: for each pair, float [B, N, Ht] of the teacher's layer.
        token_mask: bool [B, N].
        all_rows: gathers the rows of all ranks, and tells which of this rank's rows count.

    Returns:
        float [B].
    """
    pairs = zip(student, teacher, strict=True)
    return mean_over_layers(
        similarity_difference(pooled(s, token_mask), pooled(t, token_mask), all_rows) for s, t in pairs
    )

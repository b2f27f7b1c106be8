"""Losses on the states inside two transformers that read the same tokens: one value per row, [B], mean over its tokens.

Each takes lists, one tensor for each pair of layers (losses/layers.py); with `mapped`, the student's states already
have the teacher's width. Recipes are checked against the signatures without importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dtrain.losses.over_tokens import mean_over_layers
from dtrain.losses.registry import OF_TEACHERS, register
from dtrain.losses.states import angle, gaussian, hint, squared_difference
from dtrain.losses.torch_later import variational

if TYPE_CHECKING:
    from torch import Tensor, nn

Variance = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    return mean_over_layers(squared_difference(own, theirs, token_mask) for own, theirs in pairs)


@register("hidden_states", "teachers.hidden_states", "token_mask", layers="last", mapped=True)
def hidden_cosine(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean_(l, g(l)) mean_i (1 - cos(h_s W, h_t)) over pairs of layers and a row's tokens i (DistilBERT, 1910.01108, sec. 2).

    It compares the direction of states and not their size; DistilBERT does so for the last layers alone.

    Args:
        student: for each pair, float [B, N, H] of the student's layer, H its teacher's width.
        teacher: for each pair, float [B, N, H] of the teacher's layer.
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    pairs = zip(student, teacher, strict=True)
    return mean_over_layers(angle(own, theirs, token_mask) for own, theirs in pairs)


@register("embeddings", "teachers.embeddings", "token_mask", mapped=True)
def embedding_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean_i ||e_s W - e_t||^2 / H over a row's tokens i, e the input of the first layer (TinyBERT, 1909.10351, eq. 9).

    Args:
        student: one tensor, float [B, N, H], H the teacher's width.
        teacher: one tensor, float [B, N, H].
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    return squared_difference(student[0], teacher[0], token_mask)


@register("hidden_states", "teachers.hidden_states", "token_mask", layers=..., mapped=True)
def hidden_hint(student: Sequence[Tensor], teacher: Sequence[Tensor], token_mask: Tensor) -> Tensor:
    """mean_(l, g(l)) mean_i 1/2 ||h_t - r(h_s)||^2, the *sum* over channels, over a row's tokens i (FitNets, 1412.6550, eq. 3).

    r is a trained linear map. The paper compares a middle layer of either model, and in a first stage trains the
    student only up to that layer: `layers: [[2, 6]]`.

    Args:
        student: for each pair, float [B, N, H] of the student's layer, H its teacher's width.
        teacher: for each pair, float [B, N, H] of the teacher's layer.
        token_mask: bool [B, N].

    Returns:
        float [B].
    """
    pairs = zip(student, teacher, strict=True)
    return mean_over_layers(hint(own, theirs, token_mask) for own, theirs in pairs)


def _regressors(widths: Mapping[str, int], *, variance: float, floor: float) -> nn.Module:
    own, theirs = widths["hidden_states"], widths[f"{OF_TEACHERS}hidden_states"]
    return variational.Regressors(own, theirs, widths["pairs"], variance=variance, floor=floor)


@register("hidden_states", "teachers.hidden_states", "token_mask", weights=_regressors)
def vid(
    regressors: nn.Module,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    token_mask: Tensor,
    *,
    variance: Variance = 5.0,
    floor: Variance = 1e-5,
) -> Tensor:
    """mean_(l, g(l)) mean_i sum_c [log s_c + (h_t - mu(h_s))_c^2 / (2 s_c^2)] over a row's tokens i (1904.05835, eq. 4 to 6).

    Variational information distillation: -log q(h_t | h_s) up to a constant, q a normal distribution with one variance
    per channel, s_c^2 = softplus(alpha_c) + floor. mu, two layers with a ReLU between, and alpha are trained for each
    pair of layers; channels that the student cannot predict get a large variance. It is a sum over channels, so its
    weight should be small.

    Args:
        regressors: gives mu and alpha.
        student: for each pair, float [B, N, Hs] of the student's layer.
        teacher: for each pair, float [B, N, Ht] of the teacher's layer.
        token_mask: bool [B, N].
        variance: the initial s_c^2.
        floor: the least s_c^2.

    Returns:
        float [B].
    """
    known = zip(regressors(student), teacher, strict=True)
    return mean_over_layers(gaussian(mean, alpha, theirs, token_mask, floor) for (mean, alpha), theirs in known)

"""Losses on the states inside two transformers that read the same tokens: values a row [B], means over its tokens.

Each gets lists, one tensor for each pair of layers (losses/layers.py), the student's already of its teacher's width
where `mapped` says so. Recipes are checked against their signatures, for which torch is not imported.
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

    The direction of the states and not their size; DistilBERT takes the last layers alone.

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
    """mean_i ||e_s W - e_t||^2 / H over a row's tokens i, e what goes into the first layer (TinyBERT, 1909.10351, eq. 9).

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

    r is a linear map, which is trained. The paper compares one layer in the middle of either model, and trains in a
    first stage only what lies below the student's: `layers: [[2, 6]]`.

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

    Variational information distillation: -log q(h_t | h_s) but for a constant, q normal with a variance a channel,
    s_c^2 = softplus(alpha_c) + floor. mu, two layers with a ReLU between, and alpha are trained for each pair of layers;
    channels that the student need not know get a large variance. It sums over channels: weights are small.

    Args:
        regressors: gives mu and alpha.
        student: for each pair, float [B, N, Hs] of the student's layer.
        teacher: for each pair, float [B, N, Ht] of the teacher's layer.
        token_mask: bool [B, N].
        variance: s_c^2 at the beginning.
        floor: the least s_c^2.

    Returns:
        float [B].
    """
    known = zip(regressors(student), teacher, strict=True)
    return mean_over_layers(gaussian(mean, alpha, theirs, token_mask, floor) for (mean, alpha), theirs in known)

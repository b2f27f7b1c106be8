"""Adversarial feature adaptation: a discriminator tells two kinds of text apart, and features learn to prevent that.

Recipes are checked against the signature without importing torch (see torch_later.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dtrain.errors import InputError
from dtrain.losses.registry import register
from dtrain.losses.torch_later import adversary, functional, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dtrain.losses.adversary import Balanced

Units = Annotated[int, Field(gt=0, le=65536)]
Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Between = Literal["pairs", "labels"]
FIRST = {"pairs": "paired_rows", "labels": "labelled_rows"}  # the count in `widths` of rows with d = 1


def _discriminator(
    widths: Mapping[str, int], *, hidden: int, strength: float, between: Between, balanced: bool
) -> nn.Module:
    """The discriminator for features of this width and for the numbers of training rows of each kind.

    Raises:
        InputError: all rows are of one kind, or the model has no features.
    """
    if "features" not in widths:
        raise InputError(
            "losses.domain_adversary: looks at the features before a linear classifier, which the model has not"
        )
    ones = widths[FIRST[between]]
    counts = (widths["training_rows"] - ones, ones)
    if not min(counts):
        kinds = "rows of pairs and rows of one side" if between == "pairs" else "rows with a label and rows without one"
        raise InputError(f"losses.domain_adversary: tells apart {kinds}, and all {sum(counts):,} rows are of one kind")
    rows = [sum(counts) / (2 * count) if balanced else 1.0 for count in counts]
    return adversary.Balanced(widths["features"], hidden, (rows[0], rows[1]))


@register("features", "parallel", "labelled", weights=_discriminator)
def domain_adversary(
    discriminator: Balanced,
    features: Tensor,
    parallel: Tensor,
    labelled: Tensor,
    *,
    hidden: Units = 128,
    strength: Strength = 1.0,
    between: Between = "pairs",
    balanced: bool = True,
) -> Tensor:
    """w_d log(1 + exp(-(2 d - 1) D(R(f)))), D(f) = W_h tanh(W_x f + b_x) + b_h, d 1 or 0 for a row's kind of text.

    Adversarial feature adaptation (Xu and Yang 1705.02073, section 3.2). The discriminator D learns to tell labelled text
    from parallel text, while R reverses its gradient, so that features learn to hide the difference: R(f) = f, and its
    gradient is -strength times that of f (Ganin and Lempitsky 1409.7495). One optimizer trains both. While the logged
    value stays near log 2 = 0.69, D cannot tell the kinds apart. Computed in float32.

    Args:
        discriminator: D.
        features: float [B, F].
        parallel: bool [B], whether a row is parallel text.
        labelled: bool [B].
        hidden: units of D.
        strength: factor on the gradient that reaches the features; the weight of the term multiplies this gradient and
            that of D's own weights alike.
        between: which kinds are told apart: rows with and without parallel text (`pairs`), or rows with and without a label
            (`labels`).
        balanced: whether w_d is n / (2 n_d) for n training rows, n_d of kind d, so that both kinds count the
            same; else 1.

    Returns:
        float [B].
    """
    ones = parallel if between == "pairs" else labelled
    answers = discriminator(adversary.reverse_gradient(features, strength))  # float32 or float64
    low, high = discriminator.balance
    values = functional.softplus(torch.where(ones, -answers, answers))
    return values * torch.where(ones, high, low).to(values.dtype)

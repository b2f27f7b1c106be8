"""What the package's own models return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClassifierOutput(NamedTuple):
    """`logits` [B, C], and `features` [B, F], the pooled vector that reaches the classifier."""

    logits: Tensor
    features: Tensor


class TaggerOutput(NamedTuple):
    """Of N characters, T tags: `logits` float32 [B, N, T], the emissions; `mask` bool [B, N], True for characters.

    Where asked for: `nll` float32 [B], the negative log-likelihood of the given tags summed over characters, and
    `marginals` float32 [B, N, T], log p(tag_i = t | x). `states` [B, N, F]: the input of the
    linear layer of emissions, before dropout.
    """

    logits: Tensor
    mask: Tensor
    nll: Tensor | None
    marginals: Tensor | None
    states: Tensor | None = None

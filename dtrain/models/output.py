"""What the package's own classifiers return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClassifierOutput(NamedTuple):
    """`logits` [B, C], and `features` [B, F], the pooled vector that reaches the classifier."""

    logits: Tensor
    features: Tensor

"""Logits of many classes, stored as the k largest and the log-sum-exp of the others, which nearly suffices for a softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending (equal ones by class number), and the log-sum-exp of the others.

    Args:
        logits: float32 [B, C], C > k; or [B, N, C] of N tokens of each row.

    Returns:
        float32 [B, k + 1], or [B, N, k + 1], the others' log-sum-exp last; int64 [B, k], or [B, N, k], the classes. NaN or
        infinity anywhere among the logits of a row, or of a token, gives NaN or infinity among its values.
    """
    if logits.dim() == 3:
        # A vocabulary has thousands of tokens, and sorting all of them takes ten times as long. The order of equal values is
        # then the kernel's, the same each time.
        values, tokens = logits.topk(k, dim=2)
        rest = logits.scatter(2, tokens, -torch.inf).logsumexp(2, keepdim=True) + 0 * logits.amin(2, keepdim=True)
        return torch.cat([values, rest], dim=2), tokens
    values, classes = logits.sort(dim=1, descending=True, stable=True)
    # A log-sum-exp ignores -inf, which must not get lost: 0 x -inf is NaN.
    rest = values[:, k:].logsumexp(1, keepdim=True) + 0 * values[:, -1:]
    return torch.cat([values[:, :k], rest], dim=1), classes[:, :k]


def spread(values: Tensor, classes: Tensor, width: int) -> Tensor:
    """Logits, float32 [B, C], from what `largest` kept.

    Their softmax gives the k classes the same probabilities as before, and the other classes equal shares of the rest.

    Args:
        values: float32 [B, k + 1].
        classes: int64 [B, k].
        width: C.
    """
    k = classes.shape[1]
    logits = (values[:, k:] - math.log(width - k)).repeat(1, width)
    return logits.scatter_(1, classes, values[:, :k])

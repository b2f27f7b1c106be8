"""Logits of many classes, stored as the k largest and the rest as one: what a softmax needs of them, nearly."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, descending (equal ones by class number), and the log-sum-exp of the others.

    Args:
        logits: float32 [B, C], C > k; or [B, N, C] of N tokens of each row.

    Returns:
        float32 [B, k + 1], or [B, N, k + 1], the others' log-sum-exp last; int64 [B, k], or [B, N, k], the classes. What
        has NaN or infinity among its logits has one among its values, wherever it was.
    """
    if logits.dim() == 3:
        # A vocabulary has thousands of tokens: sorting all takes ten times as long. Which of equal ones comes first is then
        # for the kernel to say, the same each time.
        values, tokens = logits.topk(k, dim=2)
        rest = logits.scatter(2, tokens, -torch.inf).logsumexp(2, keepdim=True) + 0 * logits.amin(2, keepdim=True)
        return torch.cat([values, rest], dim=2), tokens
    values, classes = logits.sort(dim=1, descending=True, stable=True)
    # A log-sum-exp passes over -inf, which must be seen: 0 x -inf is NaN.
    rest = values[:, k:].logsumexp(1, keepdim=True) + 0 * values[:, -1:]
    return torch.cat([values[:, :k], rest], dim=1), classes[:, :k]


def spread(values: Tensor, classes: Tensor, width: int) -> Tensor:
    """Logits [B, C] of what `largest` kept: its softmax has the same k probabilities, and the others share the rest.

    Args:
        values: float32 [B, k + 1].
        classes: int64 [B, k].
        width: C.
    """
    k = classes.shape[1]
    logits = (values[:, k:] - math.log(width - k)).repeat(1, width)
    return logits.scatter_(1, classes, values[:, :k])

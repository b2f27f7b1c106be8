"""How much each of several teachers counts in a row: weights [K, B] that sum to 1 over teachers.

They carry no gradient to the student and depend on no other row, so that a batch may be split anywhere. With
one teacher every weight is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dtrain.losses.min_norm import min_norm_weights
from dtrain.losses.outputs import divergence, full_precision


def fixed_weights(shares: list[float], rows: int, device: torch.device) -> Tensor:
    """The recipe's numbers over their sum, the same in every row: float64 [K, B]."""
    weights = torch.tensor(shares, dtype=torch.float64).to(device, non_blocking=True)
    return (weights / weights.sum())[:, None].expand(-1, rows)


def confidence_weights(teacher_logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """w_k = 1/(K-1) (1 - exp(CE_k) / sum_j exp(CE_j)), CE_k of teacher k with the gold label (CA-MKD, 2201.00007).

    In a row without a label, every teacher has the weight 1/K.

    Args:
        teacher_logits: float [K, B, C].
        labels: int64 [B], in [0, C) also where there is no label.
        labelled: bool [B].
    """
    logits = full_precision(teacher_logits)
    count = len(logits)
    losses = torch.stack([functional.cross_entropy(one, labels, reduction="none") for one in logits])
    return torch.where(labelled, _the_less_the_better(losses), 1 / count)


def entropy_weights(teacher_logits: Tensor) -> Tensor:
    """w_k = (1 - softmax(H)_k) / (K-1), H_k the entropy of teacher k's prediction (EBKD, Kwon et al. 2020).

    Args:
        teacher_logits: float [K, B, C].
    """
    log_probabilities = full_precision(teacher_logits).log_softmax(-1)
    negative = divergence(log_probabilities, torch.zeros((), device=log_probabilities.device))
    return _the_less_the_better(-negative)


def gradient_weights(gradients: Tensor, limit: float) -> Tensor:
    """argmin_w 1/2 ||sum_k w_k g_k||^2 with sum w = 1, 0 <= w_k <= limit (AEKD, Du et al. 2020, equation 8), per row.

    With limit 1, a small step along -sum_k w_k g_k increases no teacher's loss.

    Args:
        gradients: float [K, B, F], of each teacher's loss with respect to the student's output.

    Raises:
        ValueError: limit * K < 1.
    """
    gradients = gradients.double()
    return min_norm_weights(torch.einsum("kbf,lbf->bkl", gradients, gradients), limit).T


def _the_less_the_better(badness: Tensor) -> Tensor:
    count = len(badness)
    return torch.ones_like(badness) if count == 1 else (1 - badness.softmax(0)) / (count - 1)

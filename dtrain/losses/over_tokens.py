"""What losses on hidden states, attention and relations share: means over unpadded tokens, and full precision.

A loss gives one value per row: the mean over its unpadded tokens, or over its pairs of unpadded tokens. So the values
of a batch sum over ranks and micro-batches, and a row's value is the same however far it is padded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec

from dtrain.losses.outputs import full_precision
from dtrain.losses.torch_later import torch

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")


def computed_in_full(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Make a function of tensors compute in float32 at least, also under autocast.

    Autocast would compute products of hidden states in half precision, whose 8 to 11 bits are too few for a softmax of
    relations or a square of differences.
    """

    @functools.wraps(function)
    def computed(*given: P.args, **options: P.kwargs) -> Tensor:
        device = next(one.device.type for one in given if isinstance(one, torch.Tensor))
        whole: Any = [full_precision(one) if isinstance(one, torch.Tensor) else one for one in given]
        with torch.autocast(device, enabled=False):
            return function(*whole, **options)

    return computed


def mean_over_layers(values: Iterable[Tensor]) -> Tensor:
    """The mean over pairs of layers of their values per row, [B] each."""
    return torch.stack(list(values)).mean(0)


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of a row's values at its unpadded tokens, 0 for a row without any: [B, N] and bool [B, N] -> [B].

    Finite numbers at padding change nothing.
    """
    counts = mask.sum(1).clamp(min=1)
    return values.masked_fill(~mask, 0.0).sum(1) / counts


def mean_over_pairs(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of a row's values at pairs of unpadded tokens, and over heads: [B, A, N, N], bool [B, N] -> [B]."""
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    counts = values.shape[1] * mask.sum(1).square().clamp(min=1)
    return values.masked_fill(~pairs, 0.0).sum((1, 2, 3)) / counts


def without_padding(states: Tensor, mask: Tensor) -> Tensor:
    """States [B, N, H] with zeros at padding."""
    return states.masked_fill(~mask[:, :, None], 0.0)


def divergence_over_keys(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(softmax(t) || softmax(s)) over unpadded keys, the mean over heads and unpadded queries.

    Args:
        student, teacher: float [B, A, N, N], scores of queries (rows) against keys (columns).
        mask: bool [B, N].

    Returns:
        float [B].
    """
    padded = ~mask[:, None, None, :]
    # Half of the lowest number: a difference of two of them is still finite, and its exponential is exactly 0.
    lowest = torch.finfo(student.dtype).min / 2
    own = student.masked_fill(padded, lowest).log_softmax(-1)
    target = teacher.masked_fill(padded, lowest).log_softmax(-1)
    divergence = (target.exp() * (target - own)).masked_fill(padded, 0.0).sum(-1)
    return mean_over_tokens(divergence.mean(1), mask)

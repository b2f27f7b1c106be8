"""The zeros and ones of dropout's masks on a CPU, drawn seven times as fast as torch draws them.

torch draws one number at a time with one thread, whatever its number of threads: 6 ns each on an AMD EPYC, which was 4 to
10 % of a fine-tuning step of a BERT of 4 layers of 512. On Intel CPUs it has another generator, MKL's, and other masks
for the same seed. Here each 64-bit word of torch's Mersenne Twister gives eight numbers: 0.8 ns each, and the same
numbers on every CPU with any number of threads (tests/benchmarks/dropout_speed.py).

Within `fast_bernoulli` torch's operator `bernoulli_` itself is replaced, for tensors on a CPU. So every mask is drawn
here, also those that torch draws within attention and between the layers of an LSTM, and everything else is torch's
own: how masks are applied and differentiated, and the state of its generator, which a stopped run or activation
checkpointing restores.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

FEW = 1 << 13  # for fewer numbers, the calls cost more than drawing from a number each
BLOCK = 1 << 18  # numbers drawn at once: 256 KiB of bytes stay in a core's cache (2 million at once took twice as long)


@contextlib.contextmanager
def fast_bernoulli() -> Iterator[None]:
    """A region in which all threads' `Tensor.bernoulli_(p)` on CPUs draws its numbers here; it may be nested.

    Tensors of probabilities, `torch.bernoulli(p)` and `bernoulli_(p)` with a tensor `p`, stay torch's.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*\n?.*Overriding a previously registered kernel", category=UserWarning
        )
        library.impl("bernoulli_.float", _fill, "CPU")
    try:
        yield
    finally:
        del library  # with its last reference, torch's own operator is back


def draw(count: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Independent numbers, each True with probability `p` (to within 2^-24).

    Args:
        p: in [0, 1].
        generator: of a CPU; default: torch's.

    Returns:
        bool [count].
    """
    if count < FEW:
        return torch.rand(count, generator=generator) < p
    # With 256 p = whole + rest: a byte below `whole` is True, and one equal to it is so with probability `rest`.
    whole, rest = divmod(256.0 * p, 1.0)
    drawn = np.empty(count, dtype=np.bool_)
    words = torch.empty(min(BLOCK, -(-count // 8) * 8) // 8, dtype=torch.int64)
    for start in range(0, count, BLOCK):
        part = drawn[start : start + BLOCK]
        words.random_(-(2**63), None, generator=generator)  # all 64 bits
        first = words.numpy().view(np.uint8)[: len(part)]
        np.less(first, int(whole), out=part)
        undecided = np.flatnonzero(first == int(whole))
        again = torch.rand(len(undecided), dtype=torch.float64, generator=generator)
        part[undecided] = again.numpy() < rest
    return torch.from_numpy(drawn)


def _fill(values: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """`values.bernoulli_(p, generator=generator)` for a CPU; values in the order of their indices, not of memory."""
    if not 0.0 <= p <= 1.0:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    drawn = draw(values.numel(), p, generator).view(values.shape)
    # torch converts bytes to float32 eight times as fast as it does bools.
    return values.copy_(drawn if values.dtype == torch.bool else drawn.view(torch.uint8))

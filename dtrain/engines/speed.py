"""The speed of a training: rows, tokens and model FLOPs a second, and the share of the device's peak that is used."""

from __future__ import annotations

import contextlib
import functools
import resource
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from dtrain.engines.precision import DTYPES

if TYPE_CHECKING:
    from dtrain.training.job import Position

# Peak FLOP/s of dense matrix products in 16 bits, from the makers' data sheets. A key is for devices whose name has all
# of its words: "NVIDIA H100 80GB HBM3" is the SXM board, and "NVIDIA H100 PCIe" a slower one. Float32 is not listed, as
# its products may run in TF32. The peak of other devices is measured.
PEAKS = {
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100 HBM3": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100 SXM2": 125e12,
    "V100 PCIE": 112e12,
}


def model_flops(model: nn.Module) -> tuple[float, float]:
    """FLOPs of a forward and backward pass: for each token, and for each pair of tokens that attend to each other.

    Six for each parameter of a matrix product (embeddings are only looked up), and 12 · layers · hidden for a pair
    (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). What activation checkpointing computes twice counts once.
    """
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    per_token = 6.0 * sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in looked_up)
    config = getattr(model, "config", None)
    layers, hidden = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    return per_token, 12.0 * layers * hidden


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of `device` in 'fp32', 'bf16' or 'fp16': its data sheet's, or the measured rate where none is listed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and precision != "fp32" else ""
    return listed_peak(name) or matmul_rate(device, precision)


def listed_peak(name: str) -> float | None:
    """The peak in `PEAKS` of a device with this name; None for one that is not listed, and for a MIG slice of one."""
    words = set(name.replace("-", " ").split())
    known = [key for key in PEAKS if words.issuperset(key.split())]
    return PEAKS[max(known, key=len)] if known and "MIG" not in words else None


@functools.cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product in this precision, with this process's threads: the best within 0.2 s."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=DTYPES.get(precision, torch.float32), device=device)
    out, best, end = torch.empty_like(a), float("inf"), time.perf_counter() + 0.2
    with torch.no_grad():
        while (begin := time.perf_counter()) < end or best == float("inf"):
            torch.mm(a, a, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


class Clock:
    """Measures training time. Models that are trained side by side share a clock; each is credited an equal part."""

    def __init__(self) -> None:
        self._positions: list[Position] = []
        self._last = time.perf_counter()

    def share_among(self, positions: Sequence[Position]) -> None:
        """Credit the time from now on to these positions, in equal parts."""
        if list(map(id, positions)) != list(map(id, self._positions)):
            self.look()
            self._positions = list(positions)

    def look(self) -> None:
        """Credit the time since the last call of `look` or `restart`."""
        now = time.perf_counter()
        for position in self._positions:
            position.seconds += (now - self._last) / len(self._positions)
        self._last = now

    def restart(self) -> None:
        """Do not count the time since the last `look` (an evaluation, a checkpoint) as training time."""
        self._last = time.perf_counter()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """A region whose time does not count as training time."""
        self.look()
        yield
        self.restart()


class Speed:
    """Counts the rows and tokens that all ranks trained on since the last `look`, and gives rates."""

    def __init__(
        self, flops: tuple[float, float], device: torch.device, precision: str, ranks: int, seconds: float
    ) -> None:
        """`flops`: of the whole model, from `model_flops`; `seconds`: the training time so far."""
        self._flops = flops
        self._device = device
        self._peak = peak_flops(device, precision) * ranks
        self._rows = self._tokens = self._pairs = 0
        self._seconds = seconds

    def add(self, lengths: np.ndarray) -> None:
        """Count a global batch; `lengths` [B] are the tokens of its rows, without padding."""
        whole = lengths.astype(np.int64)
        self._rows += len(whole)
        self._tokens += int(whole.sum())
        self._pairs += int((whole * whole).sum())

    def look(self, seconds: float) -> dict[str, float]:
        """The rates since the last call; `seconds`: the training time so far, without evaluations and checkpoints."""
        passed = max(seconds - self._seconds, 1e-9)
        per_token, per_pair = self._flops
        used = per_token * self._tokens + per_pair * self._pairs
        found = {
            "rows_per_second": self._rows / passed,
            "tokens_per_second": self._tokens / passed,
            "model_tflops": used / passed / 1e12,
            "utilisation": used / passed / self._peak,
            "memory_gib": memory_gib(self._device),
        }
        self._rows = self._tokens = self._pairs = 0
        self._seconds = seconds
        return found


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

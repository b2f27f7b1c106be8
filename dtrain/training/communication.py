"""The share of a step in which a collective was under way, from single steps that torch's profiler watches."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

EVERY = 200  # steps; the first is the 10th, when all memory is in place
FIRST = 10


def is_watched(step: int) -> bool:
    return step % EVERY == FIRST


class CommunicationShare:
    """`last` is that of the last step in a `watch` block, None before the first.

    It is the union of the collectives' times, by gloo's own records on CPUs and by NCCL's kernels on GPUs, over the
    step's. Waiting for a slower rank counts; so does what computation hides.
    """

    def __init__(self, device: torch.device) -> None:
        self.last: float | None = None
        self._cuda = device.type == "cuda"

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it tells of its start and its end
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        with profile(activities=activities) as watched:
            begin = time.perf_counter()
            yield
            if self._cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        device, name = (DeviceType.CUDA, "nccl") if self._cuda else (DeviceType.CPU, "gloo:")
        found = [
            (event.time_range.start, event.time_range.end)
            for event in watched.events() or ()
            if event.device_type == device and event.name.startswith(name)
        ]
        self.last = min(covered(found) / 1e6 / seconds, 1.0)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total

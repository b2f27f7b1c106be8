"""The share of a step's time in which a collective runs, measured by torch's profiler on one step in 200."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

EVERY = 200  # steps between two measurements; the first is of step 10, when all memory is allocated
FIRST = 10


def is_watched(step: int) -> bool:
    return step % EVERY == FIRST


class CommunicationShare:
    """Measures the steps that are made in a `watch` region.

    The share is the union of the times of all collectives (gloo's own records on CPUs, NCCL's kernels on GPUs) over the
    time of the step. It includes waiting for a slower rank, and communication that overlaps with computation.

    Attributes:
        last: the share, 0 to 1, of the last step that was measured; None before the first.
    """

    def __init__(self, device: torch.device) -> None:
        self.last: float | None = None
        self._cuda = device.type == "cuda"

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise the profiler prints that it starts and ends
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        with profile(activities=activities) as watched:
            begin = time.perf_counter()
            yield
            if self._cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        # gloo is recorded among the CPU's events, even where it serves GPUs.
        nccl = self._cuda and dist.is_initialized() and "nccl" in dist.get_backend()
        device, name = (DeviceType.CUDA, "nccl") if nccl else (DeviceType.CPU, "gloo:")
        found = [
            (event.time_range.start, event.time_range.end)
            for event in watched.events() or ()
            if event.device_type == device and event.name.startswith(name)
        ]
        self.last = min(covered(found) / 1e6 / seconds, 1.0)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) intervals, in their unit."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total

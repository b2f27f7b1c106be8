"""Rows a second of several models, measured side by side in one process.

Only the forward pass from token ids is timed, with a tagger's search for the best tags. The models take turns, repeat by
repeat, so that whatever else the machine does slows all of them alike; the median of the repeats counts. A measurement takes
about a second of the slowest model, however slow that is, and no more of the others.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dtrain.data import EncodedSplit

ROWS = 256
REPEATS = 5
# Of the slowest model in one repeat: fewer rows are timed if it would take longer. If one batch takes longer than this, there
# are fewer repeats: as many as take as long as five of the usual length, but two at least.
PASS_SECONDS = 0.2
CALLS_OF_P99 = 100  # at least; of fewer calls the 99th percentile would be about the slowest one


def measure(
    models: dict[str, nn.Module], parts: dict[str, EncodedSplit], device: torch.device, batch: int
) -> dict[str, Any]:
    """Time `models` on the same rows in batches of `batch`, in file order, padded to the longest of a batch.

    Args:
        models: by name, in eval mode; moved to `device` for their turn of timing and left there.
        parts: the rows as each model reads them, by the same names; the same rows in the same order.

    Returns:
        `rows_per_second` by name; `rows`, the number of rows timed in each repeat; `repeats`, how many there were; and, if
        a batch is one row, `milliseconds` of a call by name: over all repeats the median `p50`, and, if there were at least
        100 calls, the 99th percentile `p99`.
    """
    rows = min(ROWS, min(map(len, parts.values())))
    chosen = np.linspace(0, min(map(len, parts.values())) - 1, rows).astype(np.int64)
    batches = {name: _batches(parts[name], chosen, batch, device) for name in models}
    with _one_thread(), torch.inference_mode():
        passes = {name: _pass(model.to(device).eval(), batches[name], device) for name, model in models.items()}
        # The first batch is slow (allocations, choice of kernels), so a second one tells how many batches there is time for;
        # if it is only one, this second one is the first repeat.
        for one in passes.values():
            one(1)
        calls: dict[str, list[float]] = {name: [] for name in models if batch == 1}
        seconds = {name: [one(1, calls.get(name))] for name, one in passes.items()}
        slowest = max(times[0] for times in seconds.values())
        count = max(1, min(len(next(iter(batches.values()))), int(PASS_SECONDS / slowest)))
        if count > 1:
            calls, seconds = {name: [] for name in calls}, {name: [] for name in models}
        repeats = max(2, min(REPEATS, math.ceil(REPEATS * PASS_SECONDS / (count * slowest))))
        while len(next(iter(seconds.values()))) < repeats:
            for name, one in passes.items():
                seconds[name].append(one(count, calls.get(name)))
    timed = min(rows, count * batch)
    return {
        "rows_per_second": {name: timed / statistics.median(values) for name, values in seconds.items()},
        "rows": timed,
        "repeats": repeats,
        "milliseconds": {
            name: {
                f"p{share}": 1000 * float(np.percentile(values, share))
                for share in (50, 99)
                if share == 50 or len(values) >= CALLS_OF_P99
            }
            for name, values in calls.items()
        },
    }


def machine() -> dict[str, Any]:
    """The machine on which the timings were taken."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _batches(part: EncodedSplit, rows: np.ndarray, batch: int, device: torch.device) -> list[dict[str, torch.Tensor]]:
    cuts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return [{key: value.to(device) for key, value in part.collate(cut).items()} for cut in cuts]


def _pass(model: nn.Module, batches: list[dict[str, torch.Tensor]], device: torch.device) -> Callable[..., float]:
    """A function that runs the first `count` batches and gives the seconds that it took; those of each go into `calls`.

    With `calls`, each batch is waited for, as whoever asks for one row waits.
    """
    decode = getattr(model, "decode", None)  # of taggers, whose logits are not yet an answer

    def run(count: int, calls: list[float] | None = None) -> float:
        _wait(device)
        start = before = time.perf_counter()
        for inputs in batches[:count]:
            answer = model(**inputs)
            if decode is not None:
                decode(answer.logits, answer.mask)
            if calls is not None:
                _wait(device)
                now = time.perf_counter()
                calls.append(now - before)
                before = now
        _wait(device)
        return time.perf_counter() - start

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: comparable between machines, and independent of what the other cores do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

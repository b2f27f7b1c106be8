"""Runs commands of dtrain on the pretended device, one after another in this process:

    python -m tests.gpu.pretended.drive JOBS.json RESULTS.json

JOBS.json is a list of {"name": ..., "argv": [...], "scale": the first loss scale of float16}. RESULTS.json then has by
name the exit code, what was printed, the steps that float16 skipped, the seconds, and what the host waited for inside of
steps: [[file, function, kind, times], ...], with the number of steps that were looked at.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.gpu.pretended import backend

backend.load()

import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import nn  # noqa: E402

from tests.gpu.pretended import device  # noqa: E402
from tests.gpu.pretended.tensors import WAITS, Mixed  # noqa: E402

SCALING = (2.0, 0.5, 2000, True)  # torch's growth factor, backoff factor, growth interval, enabled
FIRST = 2  # steps that are not looked at: optimizers make their state in the first


def watch_steps() -> None:
    """Count waits from a step's begin to what follows it: logs, scores and checkpoints wait where they must."""
    from dtrain.training.state import TrainState

    begin, after = TrainState.begin_step, TrainState.after_step

    def begin_step(self: TrainState) -> None:
        if self.position.step >= FIRST and not WAITS.counting:
            WAITS.steps += 1
            WAITS.begin()
        begin(self)

    def after_step(self: TrainState) -> None:
        WAITS.end()
        WAITS.skipped += not self.applied
        after(self)

    TrainState.begin_step, TrainState.after_step = begin_step, after_step  # type: ignore[method-assign]


def move_before_optimizers() -> None:
    """A parameter keeps its identity on its way to a real device; here it is moved before an optimizer holds it."""
    import dtrain.engines.choose as choose

    build = choose.build_optimizer

    def build_there(model: nn.Module, spec: Any) -> Any:
        return build(model.to("cuda"), spec)

    choose.build_optimizer = build_there  # type: ignore[assignment]


def check_device() -> None:
    """The pretended device refuses and counts: without that, the tests on it could not fail."""
    there = torch.ones(3, device="cuda")
    try:
        there + torch.ones(3)
    except Mixed:
        WAITS.begin()
        (there + torch.ones(())).sum().item()  # a 0-d CPU tensor is a number
        there[there > 0].cpu()
        WAITS.end()
        assert {kind for _, _, kind in WAITS.found} == {"item", "index of booleans", "copy to the host"}, WAITS.found
        return
    raise AssertionError("a mix of devices was not refused")


def run(job: dict[str, Any], main: Callable[[list[str]], int]) -> dict[str, Any]:
    WAITS.found.clear()
    WAITS.steps = WAITS.skipped = 0
    torch.amp.GradScaler.__init__.__defaults__ = (job.get("scale", 2.0**16), *SCALING)
    told, begin = io.StringIO(), time.monotonic()
    result: dict[str, Any] = {"code": 0}
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            result["code"] = main(job["argv"])
    except BaseException:
        result["code"] = 1
        told.write(traceback.format_exc())
    WAITS.end()
    result["told"] = told.getvalue()[-20000:]
    result["steps"], result["skipped"] = WAITS.steps, WAITS.skipped
    result["seconds"] = time.monotonic() - begin
    result["waits"] = [[*place, times] for place, times in sorted(WAITS.found.items())]
    return result


def start() -> None:
    """The device in its place, and this process ready to run jobs."""
    device.install()
    check_device()
    watch_steps()
    move_before_optimizers()


def main() -> None:
    jobs, results = (Path(word) for word in sys.argv[1:3])
    start()
    from dtrain.__main__ import main as dtrain

    found = {}
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        found[job["name"]] = run(job, dtrain)
        results.write_text(json.dumps(found), encoding="utf-8")
        print(f"{job['name']}: code {found[job['name']]['code']}, {found[job['name']]['seconds']:.1f} s", flush=True)
    os._exit(0)  # the interpreter's shutdown does not know of tensors without memory


if __name__ == "__main__":
    main()

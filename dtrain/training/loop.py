"""The one training loop: pre-training and teachers over all ranks, students on one rank each or several side by side.

    step.py   what one optimizer step does
    state.py  one training's place, batches, rates, scores and checkpoints
    job.py    what a training consists of
    loop.py   several trainings side by side: which make the next step, failed, have ended, or are asked to stop

Models that are trained side by side make their steps at the same time and are otherwise independent: each has its own
scores and checkpoints, and ends or fails by itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dtrain.engines.speed import Clock
from dtrain.errors import DtrainError, reason_of
from dtrain.runtime.allocator import keep_large_blocks
from dtrain.training.bernoulli import fast_bernoulli
from dtrain.training.job import Position, TrainJob, checkpoints_of
from dtrain.training.monitor import Monitor
from dtrain.training.state import TrainState
from dtrain.training.step import train_step

ASK_SECONDS = 10.0  # at most, between two checks for a stop request: `STOP_EVERY` slow steps may take longer

# Makes one step of each training, all of them at the same position; returns those that failed, with their errors.
MakeSteps = Callable[[list[TrainState]], dict[TrainState, Exception]]


@dataclass
class Ended:
    """How one model's training ended: with its best weights, or with the reason of its failure.

    Attributes:
        best: the best weights, on the CPU; empty on ranks that do not write.
        monitor: the training's monitor, closed if it paused and still open if it ended; None after a failure.
        paused: whether it stopped at `TrainJob.pause`, after a checkpoint, to be compared with others.
    """

    job: TrainJob
    best: dict[str, torch.Tensor]
    position: Position
    monitor: Monitor | None
    error: Exception | None = None
    paused: bool = False


def fit(job: TrainJob) -> tuple[dict[str, torch.Tensor], Position, Monitor]:
    """Train to the end, or until patience ends it.

    Returns:
        The best weights (on the CPU; empty on ranks that do not write), the final position, and the open monitor.

    Raises:
        Stopped: after a complete checkpoint, when asked to stop.
        Diverged: when the loss is not finite.
    """
    (ended,) = fit_all([job])
    if ended.error is not None:
        raise ended.error
    assert ended.monitor is not None
    return ended.best, ended.position, ended.monitor


def in_turn(runs: list[TrainState]) -> dict[TrainState, Exception]:
    """Step one model after another."""
    return attempt(runs, train_step)


def attempt(runs: list[TrainState], work: Callable[[TrainState], None]) -> dict[TrainState, Exception]:
    """Call `work` for each run; returns those that failed, with their errors.

    Raises:
        torch.OutOfMemoryError: from any of them, as it concerns all that share the device.
    """
    failed: dict[TrainState, Exception] = {}
    for run in runs:
        try:
            work(run)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failed[run] = error
    return failed


def fit_all(jobs: list[TrainJob], make_steps: MakeSteps = in_turn) -> Iterator[Ended]:
    """Train several models side by side; yields each as soon as it has ended.

    Where their checkpoints are of different steps, those behind catch up first.

    Raises:
        Stopped: after a complete checkpoint of each, when asked to stop.
        torch.OutOfMemoryError: they do not fit together; those not yielded yet can continue from their checkpoints.
    """
    live: list[TrainState] = []
    clock = Clock()
    on_cpu = jobs[0].engine.world.device.type == "cpu"
    regions = contextlib.ExitStack()
    try:
        if on_cpu:
            regions.enter_context(keep_large_blocks())
            regions.enter_context(fast_bernoulli())
        common = _common_step(jobs)
        for job in jobs:
            try:
                run = TrainState(job, common, clock)
                live.append(run)
                run.warm_up()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if live and live[-1].job is job:
                    live.pop().close()
                job.close()
                yield Ended(job, {}, Position(), None, error)
        yield from _take_ended(live)
        clock.restart()
        ask_at = time.monotonic() + ASK_SECONDS
        while live:
            stop, data_parallel = live[0].job.stop, live[0].job.engine.data_parallel
            # The answers of all ranks are collected while the ranks make the step.
            answer = stop.ask(_trouble(live)) if data_parallel else None
            behind = min(run.position.step for run in live)
            now = [run for run in live if run.position.step == behind]
            clock.share_among([run.position for run in now])
            failed = make_steps(now)
            asked = False
            if answer is not None and not failed:
                asked, failed = _heard(live, answer)
            yield from _take_failed(live, failed)
            yield from _take_failed(live, attempt([run for run in now if run in live], TrainState.after_step))
            now = [run for run in now if run in live]
            if not data_parallel and (time.monotonic() > ask_at or any(run.asks_to_stop for run in now)):
                asked, ask_at = stop.anywhere(), time.monotonic() + ASK_SECONDS
            due = [run for run in (live if asked else now) if run.checkpoint_due or (asked and not run.ended)]
            yield from _take_failed(live, attempt(due, TrainState.checkpoint))
            leaving = [run for run in live if asked or run.paused]
            yield from _take_failed(live, attempt(leaving, TrainState.wait_for_checkpoint))
            if not data_parallel:
                yield from _take_failed(live, {run: run.trouble for run in live if run.trouble is not None})
            else:
                last = [run for run in live if asked or run.ended or run.paused]
                yield from _take_failed(live, attempt(last, TrainState.compare_troubles))
            yield from _take_ended(live)
            if asked and live:
                live[0].leave()
    finally:
        for run in live:
            run.close()
            run.job.close()
        regions.close()


def _trouble(live: list[TrainState]) -> str | None:
    """The reason for which a training failed on this rank alone; None where none did."""
    return next((reason_of(run.trouble) for run in live if run.trouble is not None), None)


def _heard(live: list[TrainState], answer: Callable[[], bool]) -> tuple[bool, dict[TrainState, Exception]]:
    """Wait for the answer: whether to stop, and the trainings that fail on every rank because one rank failed."""
    try:
        return answer(), {}
    except DtrainError as error:
        return False, {run: run.trouble or error for run in live}


def _take_ended(live: list[TrainState]) -> Iterator[Ended]:
    for run in [run for run in live if run.ended or run.paused]:
        live.remove(run)
        run.checkpoints.close()
        run.job.feed.close()
        if not run.ended:
            run.monitor.close()
            run.job.close()
        with run.clock.stopped():
            yield Ended(run.job, run.best, run.position, run.monitor, paused=not run.ended)


def _take_failed(live: list[TrainState], failed: dict[TrainState, Exception]) -> Iterator[Ended]:
    for run, error in failed.items():
        live.remove(run)
        run.close()
        run.job.close()
        with run.clock.stopped():
            yield Ended(run.job, {}, run.position, None, run.explain(error))


def _common_step(jobs: list[TrainJob]) -> int | None:
    """The newest step of which all peers have a checkpoint, 0 where there is none; None where there are no peers.

    Peers learn from each other in each step, so they continue from the same one.
    """
    peers = [job for job in jobs if job.peers]
    if not peers:
        return None
    theirs = [checkpoints_of(job) for job in peers]
    of_all = set.intersection(*(set(checkpoints.steps()) for checkpoints in theirs))
    whole = (step for step in sorted(of_all, reverse=True) if all(checkpoints.newest(step) for checkpoints in theirs))
    return next(whole, 0)

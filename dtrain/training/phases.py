"""Phases of one model's training as jobs, one after another: each starts from the folder that the one before has published."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from dtrain.log import say, say_anywhere
from dtrain.runfolder import is_done
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.training.checkpoint import remove_checkpoints
from dtrain.training.model_job import ModelJob, Trained, train_models


def train_phases(jobs: Sequence[ModelJob], world: World, stop: StopRequest) -> Iterator[Trained]:
    """Train the phases that are not there yet; each comes out as it ends. One that fails or waits is the last.

    Raises:
        Stopped: asked to stop, after a checkpoint.
        torch.OutOfMemoryError: it does not fit.
    """
    for job in jobs:
        there = functools.partial(is_done, job.final, job.identity)
        if world.run_on_main(there) if job.data_parallel else there():
            (say if job.data_parallel else say_anywhere)(f"{job.title}: complete, nothing to do")
            if world.is_main or not job.data_parallel:  # of a run that was killed just before it did so
                remove_checkpoints(job.checkpoints)
            continue
        ended = True
        for trained in train_models([job], world, stop):
            ended = trained.metrics is None
            if not ended and job.data_parallel:
                world.wait_for_all("published")
            yield trained
        if ended:
            return

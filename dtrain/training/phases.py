"""Phases of trainings as jobs, one after another: each starts from the folder that the one before has published."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from dtrain.log import say, say_anywhere
from dtrain.runfolder import is_done
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.training.checkpoint import remove_checkpoints
from dtrain.training.model_job import ModelJob, Trained, train_models


def train_phases(jobs_of: Sequence[Sequence[ModelJob]], world: World, stop: StopRequest) -> Iterator[Trained]:
    """Train the phases of one model or of several, each phase of all of them side by side, that are not there yet.

    Each phase comes out as it ends. Where one fails or waits, those behind it are left out.

    Raises:
        Stopped: asked to stop, after a checkpoint.
        torch.OutOfMemoryError: they do not fit.
    """
    going = list(jobs_of)
    for number in range(max(map(len, going), default=0)):
        now = [jobs[number] for jobs in going if number < len(jobs)]
        due = [job for job in now if not _is_there(job, world)]
        ended: list[ModelJob] = []
        for trained in train_models(due, world, stop) if due else ():
            if trained.metrics is None:
                ended.append(trained.job)
            elif trained.job.data_parallel:
                world.wait_for_all("published")
            yield trained
        going = [jobs for jobs in going if not set(jobs).intersection(ended)]


def _is_there(job: ModelJob, world: World) -> bool:
    """Whether a phase is done; says so."""
    there = functools.partial(is_done, job.final, job.identity)
    if not (world.run_on_main(there) if job.data_parallel else there()):
        return False
    (say if job.data_parallel else say_anywhere)(f"{job.title}: complete, nothing to do")
    if world.is_main or not job.data_parallel:  # of a run that was killed just before it did so
        remove_checkpoints(job.checkpoints)
    return True

"""The phases of trainings, one after another: each starts from the folder that the one before published."""

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
    """Train the phases of several models that are not complete yet; yields each phase as it ends.

    The first phases of all models are trained side by side, then the second ones, and so on. Where a phase fails or
    pauses, the later phases of its model are left out.

    Args:
        jobs_of: the phases of each model, in order.

    Raises:
        Stopped: asked to stop, after a checkpoint.
        torch.OutOfMemoryError: the models do not fit into memory together.
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
    """Whether a phase is complete; if so, say it and remove checkpoints that are left."""
    there = functools.partial(is_done, job.final, job.identity)
    if not (world.run_on_main(there) if job.data_parallel else there()):
        return False
    (say if job.data_parallel else say_anywhere)(f"{job.title}: complete, nothing to do")
    if world.is_main or not job.data_parallel:  # left by a run that was killed before it removed them
        remove_checkpoints(job.checkpoints)
    return True

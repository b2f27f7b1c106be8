"""finetune: train every teacher in turn, all ranks together; copy those that are taken as they are into the run."""

from __future__ import annotations

import functools

from dtrain.engines.choose import check_engine
from dtrain.engines.precision import check_precisions
from dtrain.log import say
from dtrain.plan import Plan
from dtrain.recipe import Recipe
from dtrain.recipe.training import Teacher
from dtrain.runfolder import RunFolder, is_done
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.tasks.prepared import PreparedTasks
from dtrain.training.external import publish_external
from dtrain.training.members import Members
from dtrain.training.model_job import ModelJob, train_model


def check(recipe: Recipe, world: World) -> None:
    """Raise InputError for a teacher that the launch or the device cannot train."""
    for teacher in recipe.teachers:
        if teacher.source is None:
            check_engine(world, teacher)
    check_precisions(recipe, world.device)


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read `data/`, write `teachers/<name>/` for each teacher that is not there yet."""
    plan = Plan(recipe)
    tasks = PreparedTasks.open(recipe, folder)
    members = Members(tasks, world, folder)
    stop = world.stop or StopRequest(world, folder.root)

    def is_there(teacher: Teacher) -> bool:
        identity = plan.model("teachers", teacher.name)
        return world.run_on_main(functools.partial(is_done, folder.model("teachers", teacher.name), identity))

    trainings: dict[str, list[Teacher]] = {}
    for teacher in recipe.teachers:
        if is_there(teacher):
            say(f"teacher {teacher.name}: complete, nothing to do")
        elif teacher.source is not None:
            publish_external(teacher, plan.model("teachers", teacher.name), tasks.of(teacher), world, folder)
        else:
            trainings.setdefault(plan.training(teacher), []).append(teacher)
    for waiting in trainings.values():
        while waiting:
            train_model(_furthest(waiting, plan, members), world, stop)
            waiting = [teacher for teacher in waiting if not is_there(teacher)]


def _furthest(teachers: list[Teacher], plan: Plan, members: Members) -> ModelJob:
    """The job of the longest training of teachers that differ only in `stop_epoch`; it publishes the others on its way."""
    jobs = [members.teacher(teacher, plan.model("teachers", teacher.name)) for teacher in teachers]
    # A teacher without `stop_epoch` also ends after one that takes the last epoch's weights, whatever their score.
    ends = [teacher.stop_epoch or teacher.epochs + 1 for teacher in teachers]
    last = jobs[ends.index(max(ends))]
    for job, end in zip(jobs, ends, strict=True):
        if end < max(ends):
            last.early.setdefault(end, []).append(job)
    return last

"""finetune: train every teacher in turn, all ranks together; those that are taken as they are come into the run."""

from __future__ import annotations

import functools

from dtrain.data import PreparedData
from dtrain.distributed import World
from dtrain.log import say
from dtrain.plan import Plan
from dtrain.recipe import Recipe
from dtrain.runfolder import RunFolder, is_done
from dtrain.training.given import publish_given
from dtrain.training.member import Member, train_member
from dtrain.training.stop import StopRequest


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read `data/`, write `teachers/<name>/` for each teacher that is not there yet."""
    plan = Plan(recipe)
    data = PreparedData.open(folder)
    stop = world.stop or StopRequest(world, folder.root)
    for teacher in recipe.teachers:
        identity = plan.model("teachers", teacher.name)
        if world.main_first(functools.partial(is_done, folder.model("teachers", teacher.name), identity)):
            say(f"teacher {teacher.name}: complete, nothing to do")
            continue
        if teacher.source is not None:
            publish_given(teacher, identity, recipe, data, world, folder)
            continue
        train_member(Member("teachers", teacher, identity, {}), recipe, data, world, folder, stop)

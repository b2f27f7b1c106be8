"""Inference with a model that no single device can hold: it is sharded over all ranks, which run it at the same time.

    parameters: a slice on each rank -> gathered block by block -> this rank's own batch -> freed again

Each pass gathers weights from every rank, so a rank without a batch runs a pass as well, and no rank may stop alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dtrain.engines.choose import spread_over_ranks
from dtrain.models.multi_exit import MultiExit
from dtrain.runtime.distributed import World
from dtrain.training.inference import cast_products

EVERY = 8  # passes between two checks whether all ranks go on, each of which waits for the other ranks


class AllStop(Exception):
    """Raised on every rank, in the same pass, because one of them wants to stop."""


class LockstepModel(nn.Module):
    """`model`, sharded over the ranks of `world`. Every rank must call it equally often, from one thread.

    Its outputs are those of the whole model, bit for bit: gathered weights are aligned in memory as torch aligns them.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        super().__init__()
        self.model = model
        self.world = world
        self.passes = 0
        self.over = False
        self.wants_to_stop: Callable[[], bool] = lambda: False  # called on each rank, every `EVERY` passes

    def forward(self, **batch: Any) -> Any:
        """What the model returns.

        Raises:
            AllStop: some rank wants to stop. After any other error this process must end, upon which the launcher
                ends the other ranks: they wait for this one's weights.
        """
        if self.over:  # for batches that were already queued
            raise AllStop
        self.over = True
        if self.passes % EVERY == 0 and self.world.any(self.wants_to_stop()):
            raise AllStop
        answer = self.model(**batch)
        self.passes += 1
        self.over = False
        return answer


def load_lockstep(load: Callable[[], nn.Module], precision: str, world: World) -> LockstepModel:
    """A model for inference of which every rank holds a slice. Every rank must call this function.

    The ranks of a machine load one after another, so that its memory holds one whole model at a time; blocks go
    to the device one by one, already sharded.

    Args:
        load: gives the whole model on the CPU.
        precision: 'fp32', or the autocast type of its products.
    """
    model = nn.Module()
    for turn in range(max(world.gather_objects(world.local_size))):
        if turn == world.local_rank:
            # Frozen: a block may then hold parameters of several types.
            model = cast_products(load(), precision, world.device).requires_grad_(False)
            if isinstance(model, MultiExit):
                model.every_layer = True  # rows may exit earlier on one rank than on another
            spread_over_ranks(model, world)
        world.wait_for_all("loading a model rank by rank")
    return LockstepModel(model.eval(), world)

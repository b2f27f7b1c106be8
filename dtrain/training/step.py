"""One optimizer step, from learning rates to new weights. This is all that a step does:

    rates ─▶ for each micro-batch of this rank: batch ─▶ objective ─▶ backward ─▶ ... ─▶ clip ─▶ optimizer

A step is one *global* batch: a list of rows that depends on (seed, epoch, position) alone. Each rank takes its share
in `accumulation` micro-batches; the loss is a sum over rows divided by the global number of rows (of characters, for
tagging). So neither the number of ranks nor the micro-batch changes what is computed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from dtrain.training.communication import is_watched

if TYPE_CHECKING:
    from dtrain.losses.objective import Losses
    from dtrain.training.state import MicroBatch, TrainState


def train_step(state: TrainState) -> None:
    """Make one optimizer step on the global batch at the state's position."""
    engine = state.job.engine
    watched = engine.data_parallel and is_watched(state.position.step)
    with state.communication.watch() if watched else contextlib.nullcontext():
        state.begin_step()  # sets the learning rates; draws the masks of pre-training
        seed_dropout(engine.world.device, state.random_seed())  # a function of (seed, rank, step)
        for micro in state.micro_batches():  # the next ones are read while one is computed
            add_gradients(state, micro)
        state.norm, state.applied = engine.step(state.job.spec.clip, state.turn)
    if watched:
        state.position.communication_share = state.communication.last


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from on `device`, as `torch.manual_seed` does.

    On a CPU that is one generator; `torch.manual_seed` also notes down the call stack for each kind of GPU, in case one is
    used later, which takes a quarter of a millisecond and more.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def add_gradients(state: TrainState, micro: MicroBatch) -> None:
    """Add the gradient of `scale` x the loss of a micro-batch, adversarial passes included."""
    engine, adversary = state.job.engine, state.job.adversary
    passes: list[Losses] = []

    def forward() -> torch.Tensor:
        with engine.autocast():
            losses = engine.model(micro.batch, state.progress)
        passes.append(losses)
        return losses[0] * micro.scale

    if adversary is None:
        with engine.synchronise_when(micro.last):  # gradients are reduced over ranks once a step
            engine.backward(forward())
    else:
        adversary.micro_step(forward, engine.backward, lambda ends: engine.synchronise_when(micro.last and ends))
    state.log.add(passes[0], micro.batch, counts=micro.scale > 0)  # of the pass without perturbation

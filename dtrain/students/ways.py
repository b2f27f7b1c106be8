"""The ways to make one step of several students: stacked, on CUDA streams, or learning from each other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtrain.data.batch import Batch
from dtrain.losses.outputs import full_precision
from dtrain.models.bilstm import BiLSTM
from dtrain.models.textcnn import TextCNN
from dtrain.students.stack import Stack
from dtrain.students.stacked_bilstm import forward_bilstm
from dtrain.students.stacked_textcnn import forward_textcnn
from dtrain.teachers.sources import Peer
from dtrain.training.job import Diverged
from dtrain.training.loop import attempt
from dtrain.training.state import TrainState
from dtrain.training.step import train_step

FORWARDS: dict[type, Callable[..., tuple[Tensor, Tensor]]] = {TextCNN: forward_textcnn, BiLSTM: forward_bilstm}


class Fused:
    """Steps members of one structure as one stacked model. A member that leaves is taken out of the stack."""

    def __init__(self) -> None:
        self._states: list[TrainState] = []
        self._stack: Stack | None = None

    def __call__(self, states: list[TrainState]) -> dict[TrainState, Exception]:
        if self._stack is None or self._states != states:
            self._states = list(states)
            self._stack = Stack([state.job.engine for state in states], states[0].job.spec.optimizer.type)
        stack, first = self._stack, states[0]
        stack.attach()
        failed = attempt(states, TrainState.begin_step)
        random = [torch.Generator(s.job.engine.world.device).manual_seed(s.random_seed()) for s in states]
        stack.zero_grad()
        for number, (rows, scale) in enumerate(first.shares()):
            inputs = first.job.feed.batch(rows).inputs
            with first.job.engine.autocast():
                logits, features = _answers(stack, inputs, random)
                total = torch.zeros((), device=logits.device)
                for state, *answer in zip(states, logits.unbind(), features.unbind(), strict=True):
                    if state in failed:
                        continue
                    try:
                        total = total + self._loss(state, answer, rows, number, scale > 0) * scale
                    except torch.OutOfMemoryError:
                        raise
                    except Exception as error:
                        failed[state] = error
            if total.requires_grad:
                stack.backward(total)
        norms = stack.step([state.job.spec.clip for state in states])
        for state, norm in zip(states, norms, strict=True):
            state.norm, state.applied = norm, True
        return failed

    @staticmethod
    def _loss(state: TrainState, answer: list[Tensor], rows: np.ndarray, number: int, counts: bool) -> Tensor:
        """A member's loss, from the outputs [logits, features] that the stack computed for it."""
        batch = state.job.feed.batch(rows)
        state.read_ahead(number)
        objective = state.job.engine.module
        losses = objective.parts(dict(zip(("logits", "features"), answer, strict=True)), batch, state.progress)  # type: ignore[operator]
        state.log.add(losses, batch, counts=counts)
        return losses[0]


def _answers(stack: Stack, inputs: dict[str, Tensor], random: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Logits and features of every member, [K, B, ...].

    A single member is computed beside a copy of itself: batched products of one matrix use other kernels than those of
    several, and round differently (by 1e-7 for a BiLSTM 11/9); but a member's bits must not depend on which others are
    left in its stack.
    """
    forward = FORWARDS[type(stack.models[0])]
    models, weights = stack.models, stack.weights
    if len(models) == 1:
        models, random = models * 2, [*random, torch.Generator(random[0].device)]
        weights = {name: torch.cat([weight, weight]) for name, weight in weights.items()}
    logits, features = forward(models, weights, inputs["input_ids"], inputs["attention_mask"], random)
    return logits[: len(stack.models)], features[: len(stack.models)]


class Peers:
    """Steps students that learn from each other's answers: deep mutual learning (Zhang et al. 2018, 1706.00384).

    The loss of peer k of K is its own plus 1/(K-1) sum_l KL(p_l || p_k) (equations 3 to 5), with all p computed before
    the step and without gradient through p_l. A peer whose answers are not finite leaves before others learn from them.
    """

    def __init__(self) -> None:
        # Of the current micro-batch.
        self._answers: dict[TrainState, tuple[Batch, dict[str, Tensor]]] = {}
        self._losses: dict[TrainState, Tensor] = {}

    def __call__(self, states: list[TrainState]) -> dict[TrainState, Exception]:
        failed = attempt(states, TrainState.begin_step)
        for number, (rows, scale) in enumerate(states[0].shares()):
            self._answers, self._losses = {}, {}
            for work, computed in (
                (functools.partial(self._answer, rows, number), lambda s: self._answers[s][1]["logits"]),
                (functools.partial(self._compare, scale), self._losses.__getitem__),
            ):
                failed |= attempt([state for state in states if state not in failed], work)
                failed |= _not_finite({state: computed(state) for state in states if state not in failed})
                for state in failed:
                    self._answers.pop(state, None)
            failed |= attempt([state for state in states if state not in failed], self._learn)
        return failed | attempt([state for state in states if state not in failed], self._apply)

    def _answer(self, rows: np.ndarray, number: int, state: TrainState) -> None:
        """The peer's outputs for a micro-batch, with gradient."""
        batch, engine = state.job.feed.batch(rows), state.job.engine
        state.read_ahead(number)
        torch.manual_seed(state.random_seed() + number)
        with engine.autocast():
            outputs = engine.module.outputs(batch)  # type: ignore[operator]
        outputs["logits"] = full_precision(outputs["logits"])
        self._answers[state] = batch, outputs

    def _compare(self, scale: float, state: TrainState) -> None:
        """Compute the peer's own losses and its divergence from the others."""
        engine, (batch, outputs) = state.job.engine, self._answers[state]
        peers = {}
        for other, (_, answer) in self._answers.items():
            if other is not state:
                source = Peer()
                source.answer({"logits": answer["logits"]})
                peers[other.job.title] = source.outputs(batch, ["logits"])
        with engine.autocast():
            losses = engine.module.parts(outputs, replace(batch, peers=peers), state.progress)  # type: ignore[operator]
        state.log.add(losses, batch, counts=scale > 0)
        self._losses[state] = losses[0] * scale

    def _learn(self, state: TrainState) -> None:
        state.job.engine.backward(self._losses[state])

    @staticmethod
    def _apply(state: TrainState) -> None:
        state.norm, state.applied = state.job.engine.step(state.job.spec.clip)


def _not_finite(values: dict[TrainState, Tensor]) -> dict[TrainState, Exception]:
    """The states whose values are not finite, with their errors; waits for the device once."""
    if not values:
        return {}
    finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
    lost = [state for state, good in zip(values, finite, strict=True) if not good]
    return {s: Diverged(f"{s.job.title}: its answers are not finite at step {s.position.step}") for s in lost}


class Streams:
    """Steps members one after another, each in a CUDA stream of its own: small kernels of several run at once.

    Args:
        stream: gives the region in which the n-th member's work is issued; default: on a GPU a new stream for each.
    """

    def __init__(
        self, device: torch.device, stream: Callable[[int], AbstractContextManager[Any]] | None = None
    ) -> None:
        self._device = device
        self._streams: list[Any] = []
        self._region = stream or self._own

    def __call__(self, states: list[TrainState]) -> dict[TrainState, Exception]:
        failed: dict[TrainState, Exception] = {}
        for number, state in enumerate(states):
            with self._region(number):
                failed |= attempt([state], train_step)
        if self._device.type == "cuda":
            for stream in self._streams:
                torch.cuda.current_stream(self._device).wait_stream(stream)
        return failed

    @contextlib.contextmanager
    def _own(self, number: int) -> Any:
        if self._device.type != "cuda":
            yield
            return
        while len(self._streams) <= number:
            self._streams.append(torch.cuda.Stream(self._device))
        stream = self._streams[number]
        stream.wait_stream(torch.cuda.current_stream(self._device))  # sees the weights as the last evaluation left them
        with torch.cuda.stream(stream):
            yield

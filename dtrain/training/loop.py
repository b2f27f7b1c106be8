"""The one training loop: teachers over all ranks, students on one rank each.

A step is one *global* batch: a list of rows that depends on (seed, epoch, position) alone. Each rank takes
its share, in `accumulation` micro-batches; the loss is a sum over rows divided by the global number of rows (of
characters, for tagging).
So neither the number of ranks nor the micro-batch changes what is computed, and continuing after a stop is
setting a position.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtrain.data import Part, share_of, training_batches
from dtrain.errors import DtrainError, Stopped
from dtrain.recipe.schema import TrainSpec
from dtrain.runfolder import fingerprint
from dtrain.training.adversarial import Adversary
from dtrain.training.checkpoint import load_checkpoint, save_checkpoint
from dtrain.training.engine import Engine
from dtrain.training.monitor import Monitor
from dtrain.training.optim import rate, scaled_to_batch
from dtrain.training.speed import Speed
from dtrain.training.stop import StopRequest
from dtrain.training.task import LossFunction

LOG_EVERY = 20
STOP_EVERY = 5  # steps between agreements on stopping
MAX_SKIPPED = 50  # fp16 steps in a row

Evaluate = Callable[[torch.nn.Module], dict[str, float]]


class Diverged(DtrainError):
    """The loss is no number any more, or fp16 overflows without end."""


@dataclass
class Position:
    """Everything a run needs to continue, besides tensors."""

    step: int = 0  # optimizer steps tried so far
    applied: int = 0  # steps not skipped by fp16 overflow; the schedule follows these
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    best_score: float | None = None
    best_step: int = 0
    best_epoch: float = 0.0
    worse: int = 0  # evaluations since the best
    skipped: int = 0
    rows: int = 0
    seconds: float = 0.0  # in training steps, evaluation not counted
    finished: bool = False  # patience is over
    running: dict[str, list[float]] = field(default_factory=dict)  # sum and count by term since the last evaluation
    history: list[dict[str, Any]] = field(default_factory=list)

    def advance(self, rows: int, epoch_steps: int, applied: bool) -> bool:
        """Count one step; whether it was the last of its epoch."""
        self.step += 1
        self.batch += 1
        self.rows += rows
        self.applied += applied
        self.skipped = 0 if applied else self.skipped + 1
        if self.batch < epoch_steps:
            return False
        self.epoch, self.batch = self.epoch + 1, 0
        return True


@dataclass
class Fit:
    """What `fit` trains, and where."""

    title: str
    spec: TrainSpec
    engine: Engine
    rows: Part
    units: np.ndarray  # int [N]: what each row counts in the mean that is trained on
    loss: LossFunction
    evaluate: Evaluate
    checkpoints: Path
    tensorboard: Path
    identity: str
    stop: StopRequest
    headline: Callable[[dict[str, float]], str]  # scores in words
    adversary: Adversary | None = None


def fit(job: Fit) -> tuple[dict[str, torch.Tensor], Position, Monitor]:
    """Train to the end, or until patience ends it.

    Returns:
        The best weights (on the CPU; empty on ranks that do not write), the final position, and the open monitor.

    Raises:
        Stopped: after a complete checkpoint, when asked to stop.
        Diverged: when the loss is not finite.
    """
    spec, engine = job.spec, job.engine
    identity = fingerprint(job.identity, engine.precision)
    position = Position()
    best: dict[str, torch.Tensor] = {}
    base = [group["lr"] for group in engine.optimizer.param_groups]
    found = load_checkpoint(job.checkpoints, identity)
    if found:
        state, tensors, best = found
        engine.load_state(tensors)
        position = Position(**state["position"])
        del state, tensors
    del found

    total = sum(len(_batches(job, epoch)) for epoch in range(spec.epochs))
    monitor = Monitor(job.title, job.tensorboard, total, position.step, speaks=engine.rank == 0)
    try:
        best = _steps(job, position, best, base, total, identity, monitor)
    except Diverged as error:
        monitor.close()
        kept = sorted(job.checkpoints.glob("step-*"))
        raise Diverged(f"{error}" + (f"; the last good checkpoint is {kept[-1]}" if kept else "")) from None
    except BaseException:
        monitor.close()
        raise
    return best, position, monitor


def _steps(
    job: Fit,
    position: Position,
    best: dict[str, torch.Tensor],
    base: list[float],
    total: int,
    identity: str,
    monitor: Monitor,
) -> dict[str, torch.Tensor]:
    """Every step from `position` on; the best weights."""
    spec, engine, world = job.spec, job.engine, job.engine.world
    _, schedule = scaled_to_batch(spec)
    factor = rate(schedule, total, spec.epochs)
    window = _Window(engine, job.title, position)
    batches = _batches(job, position.epoch)
    window.restart_clock()
    speed = Speed(engine.flops, world.device, engine.precision, engine.ranks, position.seconds)

    while position.step < total and not position.finished:
        batch = batches[position.batch]
        for group, lr in zip(engine.optimizer.param_groups, base, strict=True):
            group["lr"] = lr * factor(position.applied)
        norm, applied = _train_step(job, batch, position.step, window)
        epoch_ends = position.advance(len(batch), len(batches), applied)
        speed.add(job.rows.lengths[batch])
        if position.skipped > MAX_SKIPPED:
            raise Diverged(
                f"{job.title}: fp16 overflowed in {position.skipped} steps in a row, to step {position.step}"
            )

        if position.step % LOG_EVERY == 0 or epoch_ends:
            means = window.flush()
            watched = {"lr": engine.optimizer.param_groups[0]["lr"], "gradient_norm": float(norm), **engine.watched()}
            watched["skipped_steps"] = position.step - position.applied
            ratios = engine.trust_ratios()
            monitor.training(position.step, means | watched, speed.look(position.seconds), ratios)
        due = position.step % spec.evaluate_every == 0 if spec.evaluate_every else epoch_ends
        if due or position.step == total:
            window.flush()
            if _evaluate(job, position, len(batches), monitor):
                best = engine.weights()
            window.restart_clock()
        ends = position.finished or position.step == total
        asked = not ends and position.step % STOP_EVERY == 0 and _asked_to_stop(job)
        due = position.step % spec.checkpoint_every == 0 if spec.checkpoint_every else epoch_ends
        if asked or (due and not ends):
            window.flush()
            tensors = engine.state()
            if engine.rank == 0:
                state = {"position": asdict(position)}
                save_checkpoint(job.checkpoints, position.step, identity, state, tensors, best)
            del tensors
            window.restart_clock()
        if asked:
            if engine.together:
                world.wait_for_all("checkpoint")  # nobody leaves before it is whole
            reason = f"stopped on request ({job.stop.reason}) at step {position.step} of {total}"
            raise Stopped(f"{job.title}: {reason}; the same command continues")
        if epoch_ends and not ends:
            batches = _batches(job, position.epoch)
    return best


def _train_step(job: Fit, batch: np.ndarray, step: int, window: _Window) -> tuple[torch.Tensor, bool]:
    """One optimizer step on a global batch; the gradient norm, and whether it was applied."""
    engine = job.engine
    shares = share_of(batch, engine.rank, engine.ranks, job.spec.accumulation, step)
    # Dropout is a function of (seed, rank, step): no random state to keep.
    torch.manual_seed(int(fingerprint(job.spec.seed, engine.rank, step)[:15], 16))
    engine.model.train()
    whole = float(job.units[batch].sum())
    for number, share in enumerate(shares):
        # A rank without rows still takes part, with a row that counts nothing.
        rows = share if len(share) else batch[:1]
        scale = 1.0 / whole if len(share) else 0.0
        _micro_step(job, rows, scale, number == len(shares) - 1, window)
    return engine.step(job.spec.clip)


def _micro_step(job: Fit, rows: np.ndarray, scale: float, last: bool, window: _Window) -> None:
    """Add the gradient of `scale` x the loss of these rows, adversarial passes included."""
    engine = job.engine
    measured: list[tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def forward() -> torch.Tensor:
        with engine.autocast():
            total, sums, counts = job.loss(engine.model, rows)
        measured.append((total, sums, counts))
        return total * scale

    if job.adversary is None:
        with engine.synchronise_when(last):
            engine.backward(forward())
    else:
        job.adversary.micro_step(forward, engine.backward, lambda ends: engine.synchronise_when(last and ends))
    window.add(*measured[0], int(job.units[rows].sum()) if scale else 0)  # of the plain pass


def _batches(job: Fit, epoch: int) -> list[np.ndarray]:
    spec = job.spec
    assert spec.seed is not None
    return training_batches(
        job.rows.lengths, spec.seed, epoch, batch_size=spec.batch_size, batch_tokens=spec.batch_tokens
    )


def _asked_to_stop(job: Fit) -> bool:
    return job.stop.agreed() if job.engine.together else job.stop.anywhere()


def _evaluate(job: Fit, position: Position, epoch_steps: int, monitor: Monitor) -> bool:
    """Score the model as it is; whether it is the best so far. Sets `finished` when patience is over."""
    spec = job.spec
    with job.engine.plain() as model:
        scores = job.evaluate(model)
    assert spec.metric is not None  # filled by the recipe
    score = -scores["loss"] if spec.metric == "loss" else scores[spec.metric]
    if not math.isfinite(scores["loss"]):
        raise Diverged(f"{job.title}: the validation loss is {scores['loss']} at step {position.step}")
    epoch = round(position.epoch + position.batch / epoch_steps, 4)
    better = position.best_score is None or score > position.best_score
    if better:
        position.best_score, position.best_step, position.best_epoch, position.worse = (
            score,
            position.step,
            epoch,
            0,
        )
    else:
        position.worse += 1
        position.finished = spec.patience is not None and position.worse >= spec.patience
    means = {name: sum_ / count if count else 0.0 for name, (sum_, count) in position.running.items()}
    position.running.clear()
    position.history.append({"step": position.step, "epoch": epoch, "split": "train", **means})
    position.history.append({"step": position.step, "epoch": epoch, "split": "valid", **scores})
    words = f"train loss {means.get('loss', math.nan):.4f}; valid {job.headline(scores)}, loss {scores['loss']:.4f}"
    monitor.evaluation(position.step, epoch, scores, words + " (best so far)" * better, position.seconds)
    return better


class _Window:
    """Sums of loss terms on the device between two looks at them, so that steps do not wait for the host."""

    def __init__(self, engine: Engine, title: str, position: Position) -> None:
        self.engine, self.title, self.position = engine, title, position
        self._pending: dict[str, torch.Tensor] = {}
        self._clock = 0.0

    def restart_clock(self) -> None:
        """What came before (an evaluation, a checkpoint) is no training time."""
        self._clock = time.perf_counter()

    def add(
        self, total: torch.Tensor, sums: dict[str, torch.Tensor], counts: dict[str, torch.Tensor], units: int
    ) -> None:
        """Take in a micro-batch; one without rows (of a rank that only took part) adds zeros."""
        share = units > 0
        whole = torch.tensor(float(units), device=total.device)
        for name, sum_, count in [("loss", total.detach(), whole), *((n, sums[n], counts[n]) for n in sums)]:
            pair = (
                torch.stack([sum_.double(), count.double()])
                if share
                else torch.zeros(2, dtype=torch.float64, device=total.device)
            )
            self._pending[name] = self._pending[name] + pair if name in self._pending else pair

    def flush(self) -> dict[str, float]:
        """Means over all ranks since the last flush, unweighted, by term.

        It waits for the device: the time since the last flush is what its steps took, and is counted.

        Raises:
            Diverged: when one is not finite.
        """
        if not self._pending:
            return {}
        pairs = torch.stack(list(self._pending.values()))
        if self.engine.together:
            pairs = self.engine.world.sum(pairs)
        means = {}
        for name, (sum_, count) in zip(self._pending, pairs.tolist(), strict=True):
            if not math.isfinite(sum_):
                raise Diverged(f"{self.title}: {name} is {sum_} at step {self.position.step}")
            kept = self.position.running.setdefault(name, [0.0, 0.0])
            kept[0] += sum_
            kept[1] += count
            means[name] = sum_ / count if count else 0.0
        self._pending = {}
        now = time.perf_counter()
        self.position.seconds += now - self._clock
        self._clock = now
        return means

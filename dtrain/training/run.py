"""One model's way through its training: where it is, its batches and rates, what is logged, scored and kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dtrain.data import share_of, training_batches
from dtrain.errors import DtrainError, Stopped
from dtrain.recipe.training import TrainSpec
from dtrain.runfolder import fingerprint
from dtrain.training.adversarial import Adversary
from dtrain.training.checkpoint import Checkpoints
from dtrain.training.communication import CommunicationShare, is_watched
from dtrain.training.engine import Engine
from dtrain.training.monitor import Monitor
from dtrain.training.optim import rate, scaled_to_batch
from dtrain.training.speed import Clock, Speed
from dtrain.training.stop import StopRequest
from dtrain.training.task import LossFunction

LOG_EVERY = 20
STOP_EVERY = 5  # steps after which a rank that trains its own models asks if it is to stop
MAX_SKIPPED = 50  # fp16 steps in a row

Evaluate = Callable[[torch.nn.Module], dict[str, float]]
# The weighted loss sum, and by term its unweighted sum and count
Losses = tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Diverged(DtrainError):
    """The loss or the weights are no numbers any more, or fp16 overflows without end."""


@dataclass
class Position:
    """Everything a run needs to continue, besides tensors."""

    step: int = 0  # optimizer steps tried so far
    applied: int = 0  # steps not skipped by fp16 overflow; the schedule follows these
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    best_score: float | None = None
    best_loss: float | None = None  # validation loss of the same evaluation
    best_step: int = 0
    best_epoch: float = 0.0
    worse: int = 0  # evaluations since the score last rose
    skipped: int = 0
    rows: int = 0
    seconds: float = 0.0  # in training steps, evaluation not counted; side by side with others its part of them
    checkpoint_seconds: float = 0.0  # that steps waited for checkpoints
    finished: bool = False  # patience is over
    running: dict[str, list[float]] = field(default_factory=dict)  # sum and count by term since the last evaluation
    unlogged: dict[str, list[float]] = field(default_factory=dict)  # the same since the last point of the curves
    communication_share: float | None = None  # of the last step that was watched, see training/communication.py
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


class Rows(Hashable, Protocol):
    """What is trained on, as far as the loop looks at it."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, [N]."""


Taker = Callable[[dict[str, torch.Tensor], Position], None]


@dataclass(eq=False)
class Fit:
    """What is trained, and where."""

    title: str
    spec: TrainSpec
    engine: Engine
    rows: Rows
    units: np.ndarray  # int [N]: what each row counts in the mean that is trained on
    loss: LossFunction
    evaluate: Evaluate
    checkpoints: Path
    tensorboard: Path
    identity: str
    stop: StopRequest
    headline: Callable[[dict[str, float]], str]  # scores in words
    adversary: Adversary | None = None
    begin_step: Callable[[np.ndarray, int, int], None] | None = None  # (global batch, epoch, step); may set its `units`
    order: int | None = None  # the seed of the order of rows; None: the spec's
    pause: int | None = None  # epochs after which to stop for a look at the scores
    peers: bool = False  # others are trained on its answers: it can only go on from where they are
    takers: Mapping[int, Taker] = field(default_factory=dict)  # who takes the weights at the end of an epoch, on rank 0
    data: Mapping[str, Any] = field(default_factory=dict)  # where the rows are from, to say how a checkpoint differs


def checkpoint_identity(model: str, precision: str) -> str:
    """Whose checkpoints it goes on from: those of the same model (its fingerprint), trained in the same precision."""
    return fingerprint(model, precision)


def checkpoints_of(job: Fit) -> Checkpoints:
    """Where it goes on from. Peers keep two at least: they go on from a step that all of them have."""
    identity = checkpoint_identity(job.identity, job.engine.precision)
    keep = max(job.spec.keep_checkpoints, 2 if job.peers else 1)
    section = job.spec.model_dump(mode="json") | {"precision": job.engine.precision, "data": job.data}
    return Checkpoints(job.checkpoints, identity, section, keep)


class Run:
    """A `Fit` under way. Its checkpoint is loaded when it is built.

    Attributes:
        batch: the rows of the next step, positions in `job.rows`.
        norm, applied: of the last step, set by who makes it (`make_step` does).
        trouble: what this rank failed in by itself, after its part of the step; see `_by_itself`.
    """

    def __init__(self, job: Fit, from_step: int | None = None, clock: Clock | None = None) -> None:
        """`from_step`: of the checkpoint to go on from (0: none); None: the newest. `clock`: of all that train beside.

        Raises:
            DtrainError: ranks that train together do not find the same one.
        """
        self.job = job
        spec, engine = job.spec, job.engine
        self.checkpoints = checkpoints_of(job)
        self.position = Position()
        self.best: dict[str, torch.Tensor] = {}
        self._base = [group["lr"] for group in engine.optimizer.param_groups]
        found = self.checkpoints.newest(from_step) if from_step != 0 else None
        self._saved: int | None = found[0]["step"] if found else None  # the step of the last checkpoint
        if engine.together:
            self._compare_checkpoints()
        if found:
            state, tensors, self.best = found
            engine.load_state(tensors)
            self.position = Position(**state["position"])
            del state, tensors
        del found
        self.total = self._steps()
        self._factor = rate(scaled_to_batch(spec)[1], self.total, spec.epochs)
        self._batches = self._epoch(self.position.epoch)
        self.norm = torch.zeros(())
        self.applied = True
        self.monitor = Monitor(job.title, job.tensorboard, self.total, self.position.step, speaks=engine.rank == 0)
        self.clock = clock or Clock()
        self.window = _Window(engine, job.title, self.position, self.clock)
        self._speed = Speed(engine.flops, engine.world.device, engine.precision, engine.ranks, self.position.seconds)
        self._communication = CommunicationShare(engine.world.device)
        self._epoch_ended = False
        self.trouble: Exception | None = None

    @property
    def ended(self) -> bool:
        return self.position.finished or self.position.step >= self.total

    @property
    def paused(self) -> bool:
        return self.job.pause is not None and self.position.epoch >= self.job.pause

    def settle(self) -> None:
        """Before the first step; see `Engine.settle`."""
        if not self.ended:
            row = self.batch[:1]
            self.job.engine.settle(lambda: self.job.loss(self.job.engine.model, row, self.progress)[0])
        self.clock.restart()

    # --- a step --------------------------------------------------------------------------------------

    @property
    def batch(self) -> np.ndarray:
        return self._batches[self.position.batch]

    @property
    def progress(self) -> float:
        return self.position.step / self.total

    def shares(self) -> list[tuple[np.ndarray, float]]:
        """This rank's micro-batches of the step, each with the factor on its sum of losses."""
        engine, batch = self.job.engine, self.batch
        shares = share_of(batch, engine.rank, engine.ranks, self.job.spec.accumulation, self.position.step)
        whole = float(self.job.units[batch].sum())
        # A rank without rows still takes part, with a row that counts nothing.
        return [(rows, 1.0 / whole) if len(rows) else (batch[:1], 0.0) for rows in shares]

    def random_seed(self) -> int:
        """Of this step's dropout, a function of (seed, rank, step): no random state to keep."""
        return int(fingerprint(self.job.spec.seed, self.job.engine.rank, self.position.step)[:15], 16)

    def begin_step(self) -> None:
        """Rates, and what else is new with each step."""
        for group, lr in zip(self.job.engine.optimizer.param_groups, self._base, strict=True):
            group["lr"] = lr * self._factor(self.position.applied)
        if self.job.begin_step:
            self.job.begin_step(self.batch, self.position.epoch, self.position.step)
        self.job.engine.model.train()

    def make_step(self) -> None:
        """One optimizer step on the global batch."""
        watched = self.job.engine.together and is_watched(self.position.step)
        with self._communication.watch() if watched else contextlib.nullcontext():
            self._make_step()
        if watched:
            self.position.communication_share = self._communication.last

    def _make_step(self) -> None:
        self.begin_step()
        torch.manual_seed(self.random_seed())
        shares = self.shares()
        for number, (rows, scale) in enumerate(shares):
            self._micro_step(rows, scale, number == len(shares) - 1)
        self.norm, self.applied = self.job.engine.step(self.job.spec.clip)

    def _micro_step(self, rows: np.ndarray, scale: float, last: bool) -> None:
        """Add the gradient of `scale` x the loss of these rows, adversarial passes included."""
        engine, adversary = self.job.engine, self.job.adversary
        measured: list[Losses] = []

        def forward() -> torch.Tensor:
            with engine.autocast():
                losses = self.job.loss(engine.model, rows, self.progress)
            measured.append(losses)
            return losses[0] * scale

        if adversary is None:
            with engine.synchronise_when(last):
                engine.backward(forward())
        else:
            adversary.micro_step(forward, engine.backward, lambda ends: engine.synchronise_when(last and ends))
        self.measured(measured[0], rows, scale)  # of the plain pass

    def measured(self, losses: Losses, rows: np.ndarray, scale: float) -> None:
        """Take in what a micro-batch lost, for the log."""
        self.window.add(*losses, int(self.job.units[rows].sum()) if scale else 0)

    # --- after a step --------------------------------------------------------------------------------

    def after_step(self) -> None:
        """Count the step; log and evaluate where due.

        Raises:
            Diverged: the loss is not finite, or fp16 overflows without end.
        """
        job, position, engine = self.job, self.position, self.job.engine
        batch, epoch_steps = self.batch, len(self._batches)
        self._epoch_ended = epoch_ends = position.advance(len(batch), epoch_steps, self.applied)
        self._speed.add(job.rows.lengths[batch])
        if position.skipped > MAX_SKIPPED:
            raise Diverged(
                f"{job.title}: fp16 overflowed in {position.skipped} steps in a row, to step {position.step}"
            )
        if position.step % LOG_EVERY == 0 or epoch_ends:
            self.window.flush()
            means = _means(position.unlogged)
            position.unlogged.clear()
            watched = {
                "lr": engine.optimizer.param_groups[0]["lr"],
                "gradient_norm": float(self.norm),
                **engine.watched(),
            }
            watched["skipped_steps"] = position.step - position.applied
            if position.communication_share is not None:
                watched["communication_share"] = position.communication_share
            ratios = engine.trust_ratios()
            with self._by_itself():
                self.monitor.training(position.step, means | watched, self._speed.look(position.seconds), ratios)
        every = job.spec.evaluate_every
        if (position.step % every == 0 if every else epoch_ends) or position.step == self.total:
            self.window.flush()
            better = self._evaluate(epoch_steps)
            if better:
                self.best = engine.weights()
            if epoch_ends and position.epoch in job.takers:
                weights = self.best if better else engine.weights()
                with self._by_itself():
                    if engine.rank == 0:
                        job.takers[position.epoch](weights, position)
            self.clock.restart()
        if epoch_ends and not self.ended:
            self._batches = self._epoch(position.epoch)
        with self._by_itself():
            self.checkpoints.check()

    @contextlib.contextmanager
    def _by_itself(self) -> Iterator[None]:
        """Work of one rank: what it fails in is kept in `trouble`, and the collectives of the step go on.

        A rank that left them would keep the others waiting; they learn of it with the next question whether to stop.
        """
        try:
            yield
        except Exception as error:
            self.trouble = self.trouble or error

    def close(self) -> None:
        """Let go of files; a checkpoint under way is whole when this returns."""
        self.checkpoints.close()
        self.monitor.close()

    @property
    def asks_to_stop(self) -> bool:
        """Whether this is a step after which a rank that trains its own models asks if it is to stop."""
        return not self.ended and self.position.step % STOP_EVERY == 0

    @property
    def checkpoint_due(self) -> bool:
        every = self.job.spec.checkpoint_every
        due = self.position.step % every == 0 if every else self._epoch_ended
        return (due or self.paused) and not self.ended

    def checkpoint(self) -> None:
        """Begin to write all that continuing needs (*together*); steps may follow.

        Raises:
            Diverged: the loss or the weights are not finite; the same on every rank, and nothing is written.
        """
        self.window.flush()
        begin = time.perf_counter()
        # The loss is of the weights before the last step, and says nothing of those that would be kept.
        norm = float(self.job.engine.parameter_norm())
        if not math.isfinite(norm):
            raise Diverged(f"{self.job.title}: the norm of the weights is {norm} at step {self.position.step}")
        tensors = self.job.engine.state()
        if self.job.engine.rank == 0:
            with self._by_itself():
                # A run that goes on from here does not log this step again: a kill must not lose its points.
                self.monitor.flush()
                self.checkpoints.save(self.position.step, {"position": asdict(self.position)}, tensors, self.best)
        del tensors
        self._saved = self.position.step
        self.position.checkpoint_seconds += time.perf_counter() - begin
        self.clock.restart()

    def wait_for_checkpoint(self) -> None:
        """Return when it is whole, or could not be written."""
        with self._by_itself():
            self.checkpoints.wait()

    def compare_troubles(self) -> None:
        """After a step that no other follows to tell of them with: raise on all ranks what the first failed in.

        What others do by themselves is of no use any more.
        """

        def look() -> None:
            if self.trouble is not None:
                raise self.trouble

        self.job.engine.world.main_first(look)  # and nobody leaves before the checkpoint is whole

    def leave(self) -> None:
        """Stop on request, after a checkpoint. Raises Stopped."""
        reason = f"stopped on request ({self.job.stop.reason}) at step {self.position.step} of {self.total}"
        raise Stopped(f"{self.job.title}: {reason}; the same command continues")

    def explain(self, error: Exception) -> Exception:
        """A divergence tells where to find the last good weights."""
        # Not looked for in the folder, where rank 0 may just be writing: every rank tells the same.
        if not isinstance(error, Diverged) or self._saved is None:
            return error
        return Diverged(f"{error}; the last good checkpoint is {self.checkpoints.path(self._saved)}")

    def _compare_checkpoints(self) -> None:
        """A rank whose machine does not see a new file yet would go on from another step than the others."""
        steps = self.job.engine.world.gather_objects(self._saved)
        if len(set(steps)) > 1:
            shown = ", ".join("none" if step is None else f"step {step}" for step in steps)
            raise DtrainError(
                f"{self.job.title}: ranks see different checkpoints in {self.job.checkpoints} (by rank: {shown}); "
                "the same command continues once they agree"
            )

    def _steps(self) -> int:
        """Of all epochs. Only batches of tokens have to be cut for that, which takes its time."""
        spec = self.job.spec
        if spec.batch_size is not None:
            return spec.epochs * -(-len(self.job.rows.lengths) // spec.batch_size)
        return sum(len(self._epoch(epoch)) for epoch in range(spec.epochs))

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        spec = self.job.spec
        seed = spec.seed if self.job.order is None else self.job.order
        assert seed is not None
        return _batches(self.job.rows, seed, epoch, spec.batch_size, spec.batch_tokens)

    def _evaluate(self, epoch_steps: int) -> bool:
        """Score the model as it is; whether it is the best so far. Sets `finished` when patience is over."""
        job, position, spec = self.job, self.position, self.job.spec
        with job.engine.plain() as model:
            scores = job.evaluate(model)
        assert spec.metric is not None  # filled by the recipe
        score = -scores["loss"] if spec.metric == "loss" else scores[spec.metric]
        if not math.isfinite(scores["loss"]):
            raise Diverged(f"{job.title}: the validation loss is {scores['loss']} at step {position.step}")
        epoch = round(position.epoch + position.batch / epoch_steps, 4)
        stop_epoch = getattr(spec, "stop_epoch", None)  # of a teacher that is stopped early, whatever it scores
        risen = position.best_score is None or score > position.best_score or stop_epoch is not None
        # Of equal scores (an F1 that is still 0.0, or already 1.0) the better calibrated weights are kept, as teachers'
        # probabilities are what is distilled. Patience is about the score alone.
        better = risen or (
            score == position.best_score and (position.best_loss is None or scores["loss"] < position.best_loss)
        )
        if better:
            position.best_score, position.best_loss = score, scores["loss"]
            position.best_step, position.best_epoch = position.step, epoch
        if risen:
            position.worse = 0
        else:
            position.worse += 1
            position.finished = spec.patience is not None and position.worse >= spec.patience
        position.finished |= stop_epoch is not None and position.epoch >= stop_epoch
        means = _means(position.running)
        position.running.clear()
        position.history.append({"step": position.step, "epoch": epoch, "split": "train", **means})
        position.history.append({"step": position.step, "epoch": epoch, "split": "valid", **scores})
        words = f"train loss {means.get('loss', math.nan):.4f}; valid {job.headline(scores)}, loss {scores['loss']:.4f}"
        with self._by_itself():
            words += " (best so far)" * better
            self.monitor.evaluation(position.step, epoch, scores, words, position.seconds)
        return better


@lru_cache(maxsize=2)
def _batches(rows: Rows, seed: int, epoch: int, batch_size: int | None, batch_tokens: int | None) -> list[np.ndarray]:
    """Models trained together share the very arrays."""
    return training_batches(rows.lengths, seed, epoch, batch_size=batch_size, batch_tokens=batch_tokens)


def _means(sums: dict[str, list[float]]) -> dict[str, float]:
    return {name: sum_ / count if count else 0.0 for name, (sum_, count) in sums.items()}


class _Window:
    """Loss terms on the device between two looks at them, so that steps do not wait for the host."""

    def __init__(self, engine: Engine, title: str, position: Position, clock: Clock) -> None:
        self.engine, self.title, self.position, self.clock = engine, title, position, clock
        self._pending: dict[str, list[torch.Tensor]] = {}

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
            self._pending.setdefault(name, []).append(pair)

    def flush(self) -> None:
        """Add what all ranks lost since the last flush, unweighted and by term, to the sums in the position.

        It waits for the device: the time since the last flush is what the steps took, and is counted.

        Raises:
            Diverged: when one is not finite.
        """
        if not self._pending:
            return
        pairs = torch.stack([torch.stack(found).sum(0) for found in self._pending.values()])
        if self.engine.together:
            pairs = self.engine.world.sum(pairs)
        for name, (sum_, count) in zip(self._pending, pairs.tolist(), strict=True):
            if not math.isfinite(sum_):
                raise Diverged(f"{self.title}: {name} is {sum_} at step {self.position.step}")
            for sums in (self.position.running, self.position.unlogged):
                kept = sums.setdefault(name, [0.0, 0.0])
                kept[0] += sum_
                kept[1] += count
        self._pending = {}
        self.clock.look()

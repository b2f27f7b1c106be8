"""A training in progress: its position in steps and epochs, its batches, learning rates, checkpoints and scores."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from dtrain.data import share_of
from dtrain.data.batch import Batch
from dtrain.engines.engine import Turn
from dtrain.engines.optim import rate, scaled_to_batch
from dtrain.engines.speed import Clock, Speed
from dtrain.errors import DtrainError, Stopped
from dtrain.runfolder import fingerprint
from dtrain.training.communication import CommunicationShare
from dtrain.training.feed import AHEAD
from dtrain.training.job import Diverged, Position, TrainJob, checkpoints_of
from dtrain.training.loss_log import LossLog
from dtrain.training.monitor import Monitor

LOG_EVERY = 20  # steps
STOP_EVERY = 5  # steps between two checks for a stop request, on a rank that trains models by itself
MAX_SKIPPED = 50  # consecutive steps that may be skipped because fp16 overflowed


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of a rank's share of a step.

    Attributes:
        scale: the factor on its sum of losses; 0 on a rank without rows, which takes part with a row of another rank.
        last: whether it is the last one of the step.
    """

    batch: Batch
    scale: float
    last: bool


class TrainState:
    """The state of a `TrainJob` in progress. The constructor loads its checkpoint.

    Attributes:
        norm: the gradient norm of the last step before clipping, a 0-d tensor.
        applied: whether the last step was applied; False where fp16 overflowed.
        trouble: an error that only this rank met, after its part of a step; see `_own_work`.
    """

    def __init__(self, job: TrainJob, from_step: int | None = None, clock: Clock | None = None) -> None:
        """Continue from the checkpoint of `from_step` (0: from the beginning; None: from the newest one).

        Args:
            clock: shared by all models that are trained side by side; None: a new one.

        Raises:
            DtrainError: ranks that train together found different checkpoints.
        """
        self.job = job
        spec, engine = job.spec, job.engine
        self.checkpoints = checkpoints_of(job)
        self.position = Position()
        self.best: dict[str, torch.Tensor] = {}
        self._base = [group["lr"] for group in engine.optimizer.param_groups]
        found = self.checkpoints.newest(from_step) if from_step != 0 else None
        self._saved: int | None = found[0]["step"] if found else None  # the step of the last one begun
        if engine.data_parallel:
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
        self.log = LossLog(engine, job.title, self.position, self.clock)
        self.communication = CommunicationShare(engine.world.device)
        self._speed = Speed(engine.flops, engine.world.device, engine.precision, engine.ranks, self.position.seconds)
        self._epoch_ended = False
        self.trouble: Exception | None = None

    @property
    def ended(self) -> bool:
        return self.position.finished or self.position.step >= self.total

    @property
    def paused(self) -> bool:
        return self.job.pause is not None and self.position.epoch >= self.job.pause

    def warm_up(self) -> None:
        """Before the first step: keep the initial weights if asked to, and call `Engine.warm_up`."""
        if self.position.step == 0:
            self._keep_epoch()
        if not self.ended:
            row = self._batch[:1]
            self.job.engine.warm_up(lambda: self.job.engine.model(self.job.feed.batch(row), self.progress)[0])
        self.clock.restart()

    # --- what a step is made of ------------------------------------------------------------------------

    @property
    def _batch(self) -> np.ndarray:
        """The rows of the next step, positions in `job.rows`."""
        return self._batches[self.position.batch]

    @property
    def progress(self) -> float:
        """The share of all steps that are done, in [0, 1)."""
        return self.position.step / self.total

    @property
    def turn(self) -> Turn | None:
        """What the next step trains, the model or its losses; None: both."""
        turns = self.job.turns
        return None if not turns else "model" if self.position.step % (turns + 1) == turns else "losses"

    def random_seed(self) -> int:
        """The seed of this step's dropout: a function of (seed, rank, step), so no random state has to be saved."""
        return int(fingerprint(self.job.spec.seed, self.job.engine.rank, self.position.step)[:15], 16)

    def begin_step(self) -> None:
        """Set the learning rates, and let the feed draw what is random in each step (the masks of pre-training)."""
        for group, lr in zip(self.job.engine.optimizer.param_groups, self._base, strict=True):
            group["lr"] = lr * self._factor(self.position.applied)
        self.job.feed.begin_step(self._batch, self.position.epoch, self.position.step)
        self.job.engine.model.train()

    def shares(self) -> list[tuple[np.ndarray, float]]:
        """This rank's micro-batches of the step, as row numbers, each with the factor on its sum of losses."""
        batch = self._batch
        whole = float(self.job.units[batch].sum())
        # A rank without rows still takes part in the step's collectives, with a row whose loss is multiplied by 0.
        return [(rows, 1.0 / whole) if len(rows) else (batch[:1], 0.0) for rows in self._cut(batch, 0)]

    def read_ahead(self, number: int) -> None:
        """Begin to read the micro-batches after the `number`-th of this step, those of the next step included."""
        coming = [rows if len(rows) else self._batch[:1] for rows in self._cut(self._batch, 0)[number + 1 :]]
        following = self.position.batch + 1
        if len(coming) < AHEAD and self.job.feed.draw is None and following < len(self._batches):
            batch = self._batches[following]
            coming += [rows if len(rows) else batch[:1] for rows in self._cut(batch, 1)]
        self.job.feed.read_ahead(coming[:AHEAD])

    def micro_batches(self) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the step; while one is computed, the next are read."""
        shares = self.shares()
        room = -(-len(self._batch) // self.job.engine.ranks)
        for number, (rows, scale) in enumerate(shares):
            batch = replace(self.job.feed.batch(rows), counted=scale > 0, room=room)
            self.read_ahead(number)
            yield MicroBatch(batch, scale, number == len(shares) - 1)

    def _cut(self, batch: np.ndarray, later: int) -> list[np.ndarray]:
        engine = self.job.engine
        return share_of(batch, engine.rank, engine.ranks, self.job.spec.accumulation, self.position.step + later)

    # --- after a step --------------------------------------------------------------------------------

    def after_step(self) -> None:
        """Count the step; log and evaluate where due.

        Raises:
            Diverged: the loss is not finite, or fp16 overflows without end.
        """
        job, position, spec = self.job, self.position, self.job.spec
        batch, epoch_steps = self._batch, len(self._batches)
        self._epoch_ended = epoch_ends = position.advance(len(batch), epoch_steps, self.applied)
        self._speed.add(job.rows.lengths[batch])
        if position.skipped > MAX_SKIPPED:
            raise Diverged(
                f"{job.title}: fp16 overflowed in {position.skipped} steps in a row, to step {position.step}"
            )
        if position.step % LOG_EVERY == 0 or epoch_ends:
            self._log_training()
        every = spec.evaluate_every
        if (position.step % every == 0 if every else epoch_ends) or position.step == self.total:
            self.log.flush()
            better = self._evaluate(epoch_steps)
            if better:
                self.best = job.engine.weights()
            if epoch_ends and position.epoch in job.snapshots:
                weights = self.best if better else job.engine.weights()
                with self._own_work():
                    if job.engine.rank == 0:
                        job.snapshots[position.epoch](weights, position)
            self.clock.restart()
        if epoch_ends:
            self._keep_epoch()
        if epoch_ends and not self.ended:
            self._batches = self._epoch(position.epoch)
        with self._own_work():
            self.checkpoints.check()

    def _log_training(self) -> None:
        engine, position = self.job.engine, self.position
        means = self.log.means_since_point()
        watched = {
            "lr": engine.optimizer.param_groups[0]["lr"],
            "gradient_norm": float(self.norm),
            **engine.watched(),
            "skipped_steps": position.step - position.applied,
        }
        if position.communication_share is not None:
            watched["communication_share"] = position.communication_share
        ratios = engine.trust_ratios()
        with self._own_work():
            self.monitor.training(position.step, means | watched, self._speed.look(position.seconds), ratios)

    def _evaluate(self, epoch_steps: int) -> bool:
        """Score the current weights; returns whether they are the best so far. Sets `finished` if patience is over."""
        job, position, spec = self.job, self.position, self.job.spec
        with job.engine.full_model() as model:
            scores = job.evaluate(model)
        assert spec.metric is not None  # filled by the recipe
        # There are no scores where no validation row has the side that the model reads.
        loss = scores.get("loss", 0.0)
        score = -loss if spec.metric == "loss" else scores[spec.metric] if scores else 0.0
        if not math.isfinite(loss):
            raise Diverged(f"{job.title}: the validation loss is {loss} at step {position.step}")
        epoch = round(position.epoch + position.batch / epoch_steps, 4)
        stop_epoch = getattr(spec, "stop_epoch", None)  # a teacher that ends at this epoch, whatever its score
        risen = position.best_score is None or score > position.best_score
        risen |= stop_epoch is not None or job.keep_last
        # Of equal scores (an F1 that is still 0.0, or already 1.0) the weights with the lower loss are kept: they are
        # better calibrated, and a teacher's probabilities are what is distilled. Patience depends on the score alone.
        better = risen or (score == position.best_score and (position.best_loss is None or loss < position.best_loss))
        if better:
            position.best_score, position.best_loss = score, loss
            position.best_step, position.best_epoch = position.step, epoch
        if risen:
            position.worse = 0
        else:
            position.worse += 1
            position.finished = spec.patience is not None and position.worse >= spec.patience
        position.finished |= stop_epoch is not None and position.epoch >= stop_epoch
        means = self.log.means_since_evaluation()
        position.history.append({"step": position.step, "epoch": epoch, "split": "train", **means})
        position.history.append({"step": position.step, "epoch": epoch, "split": "valid", **scores})
        words = f"train loss {means.get('loss', math.nan):.4f}; valid {job.headline(scores)}"
        words += f", loss {loss:.4f}" if scores else ""
        with self._own_work():
            words += " (best so far)" * (better and not job.keep_last)
            self.monitor.evaluation(position.step, epoch, scores, words, position.seconds)
        return better

    def _keep_epoch(self) -> None:
        """Keep the weights of the epoch that has ended, where that is asked for (a collective)."""
        keep = self.job.keep_epoch
        if keep is None:
            return
        weights = self.job.engine.weights()
        with self._own_work():
            if self.job.engine.rank == 0:
                keep(self.position.epoch, weights)
        self.clock.restart()

    @contextlib.contextmanager
    def _own_work(self) -> Iterator[None]:
        """A region for work of this rank alone: an error in it is kept in `trouble`, and the step goes on.

        A rank that left out the step's collectives would keep the others waiting; they learn of the error when all
        ranks next agree on whether to stop.
        """
        try:
            yield
        except Exception as error:
            self.trouble = self.trouble or error

    def close(self) -> None:
        """Close the files. A checkpoint that is being written is complete when this returns."""
        self.checkpoints.close()
        self.monitor.close()

    @property
    def asks_to_stop(self) -> bool:
        """Whether a rank that trains models by itself checks for a stop request after this step."""
        return not self.ended and self.position.step % STOP_EVERY == 0

    # --- checkpoints and the end ---------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        every = self.job.spec.checkpoint_every
        due = self.position.step % every == 0 if every else self._epoch_ended
        return (due or self.paused) and not self.ended

    def checkpoint(self) -> None:
        """Begin to write a checkpoint (a collective); training may go on while it is written.

        Raises:
            Diverged: the loss or the weights are not finite; the same on every rank, and nothing is written.
        """
        self.log.flush()
        begin = time.perf_counter()
        # The loss was computed before the last step, and says nothing of the weights that would be written.
        norm = float(self.job.engine.parameter_norm())
        if not math.isfinite(norm):
            raise Diverged(f"{self.job.title}: the norm of the weights is {norm} at step {self.position.step}")
        tensors = self.job.engine.state()
        if self.job.engine.rank == 0:
            with self._own_work():
                # A run that continues from here does not log this step again: a kill must not lose its points.
                self.monitor.flush()
                self.checkpoints.save(self.position.step, {"position": asdict(self.position)}, tensors, self.best)
        del tensors
        self._saved = self.position.step
        self.position.checkpoint_seconds += time.perf_counter() - begin
        self.clock.restart()

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is complete; if it could not be written, the error is kept in `trouble`."""
        with self._own_work():
            self.checkpoints.wait()

    def compare_troubles(self) -> None:
        """After the last step: raise on all ranks the error that only rank 0 met, if any.

        Errors of other ranks do not matter any more, as only rank 0 writes.
        """

        def look() -> None:
            if self.trouble is not None:
                raise self.trouble

        self.job.engine.world.run_on_main(look)  # the other ranks wait until the checkpoint is complete

    def leave(self) -> None:
        """Stop on request, after a checkpoint. Raises Stopped."""
        reason = f"stopped on request ({self.job.stop.reason}) at step {self.position.step} of {self.total}"
        raise Stopped(f"{self.job.title}: {reason}; the same command continues")

    def explain(self, error: Exception) -> Exception:
        """Add the path of the last good checkpoint to a divergence; any other error is returned as it is."""
        if not isinstance(error, Diverged):
            return error
        # The step is remembered and not looked up in the folder, where rank 0 may be writing: all ranks say the same,
        # unless the last one could not be written, which rank 0 alone knows.
        self.wait_for_checkpoint()
        step = self.checkpoints.last if self.job.engine.rank == 0 else self._saved
        return (
            error if step is None else Diverged(f"{error}; the last good checkpoint is {self.checkpoints.path(step)}")
        )

    def _compare_checkpoints(self) -> None:
        """Raise DtrainError where ranks would continue from different steps, as one may not see a new file yet."""
        steps = self.job.engine.world.gather_objects(self._saved)
        if len(set(steps)) > 1:
            shown = ", ".join("none" if step is None else f"step {step}" for step in steps)
            raise DtrainError(
                f"{self.job.title}: ranks see different checkpoints in {self.job.checkpoints} (by rank: {shown}); "
                "the same command continues once they agree"
            )

    # --- epochs --------------------------------------------------------------------------------------

    def _steps(self) -> int:
        """The number of steps in all epochs."""
        spec = self.job.spec
        return self.job.feed.steps(spec.epochs, self._order, spec.batch_size, spec.batch_tokens)

    def _epoch(self, epoch: int) -> Sequence[np.ndarray]:
        return self.job.feed.epoch(self._order, epoch, self.job.spec.batch_size, self.job.spec.batch_tokens)

    @property
    def _order(self) -> int:
        """The seed of the order of rows."""
        seed = self.job.spec.seed if self.job.order is None else self.job.order
        assert seed is not None
        return seed

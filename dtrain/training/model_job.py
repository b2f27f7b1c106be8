"""From jobs to model folders: build, train and publish models, alone or side by side.

    ModelJob.prepare() ─▶ model + losses + feed ─▶ engine ─▶ fit_all ─▶ best weights ─▶ published folder

Teachers, students (members.py) and phases of pre-training (stages/pretrain.py) are all jobs of this one kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from dtrain.engines.choose import build_engine, build_model
from dtrain.engines.precision import resolve_precision
from dtrain.errors import InputError, counted
from dtrain.log import say, say_anywhere
from dtrain.losses.lasting import lasting_losses
from dtrain.losses.objective import ModelOutputs, Objective
from dtrain.models import own, parameter_count
from dtrain.models.folder import write_weights
from dtrain.models.packing import skip_padding
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.training import TrainSpec
from dtrain.runfolder import mark_done, publish_folder, write_json
from dtrain.runtime.distributed import World
from dtrain.runtime.stop import StopRequest
from dtrain.training.adversarial import Adversary
from dtrain.training.checkpoint import remove_checkpoints
from dtrain.training.feed import Feed
from dtrain.training.job import Position, TrainJob
from dtrain.training.kept_epochs import KeepEpoch
from dtrain.training.loop import Ended, MakeSteps, fit_all, in_turn
from dtrain.training.reach import freeze_unreached

LOSSES = "losses.safetensors"  # in a phase's folder: weights of its losses, with which the next phase continues


@dataclass
class Prepared:
    """What a job trains with: its data, read and checked, and functions that build the rest.

    Attributes:
        make: builds the model with its initial weights, on the CPU.
        losses: builds the losses for that model: a `LossSum`, for several tasks one for each.
        outputs: calls the model for what its losses need; see `Task.ask`.
        objective: builds the objective from (model, losses, together=); None: `Objective` with `outputs`.
        feed: builds the feed of the batches for these losses.
        evaluate: gives the validation scores of a model in a precision, over all ranks where they train it together.
        headline: puts scores into words.
        metrics: gives what `metrics.json` holds beyond the scores and what every training has.
        save: writes the model's own files into a folder.
        published: maps the trained weights by name to those that are published, by their names in the model's folder.
        data: settings of the data, to explain how another training's checkpoint differs.
        rows: the number of rows, in words.
        count: the number of rows.
        history: turns the training's own evaluations into what `history.json` holds.
        took: puts into words how long it took, from the metrics.
        terms: the specifications of the losses.
        remarks: gives warnings for a person, from all evaluations and the metrics of the weights that were kept.
    """

    make: Callable[[], nn.Module]
    losses: Callable[[nn.Module], nn.Module]
    outputs: ModelOutputs
    feed: Callable[[Any], Feed]
    evaluate: Callable[[nn.Module, str], dict[str, float]]
    headline: Callable[[Mapping[str, Any]], str]
    metrics: Callable[[Position], dict[str, Any]]
    save: Callable[[nn.Module, Path, dict[str, Any]], None]
    rows: str
    took: Callable[[Mapping[str, Any]], str]
    terms: Sequence[LossSpec] = ()
    history: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list
    remarks: Callable[[list[dict[str, Any]], Mapping[str, Any]], list[str]] = lambda evaluations, kept: []
    data: Mapping[str, Any] = field(default_factory=dict)
    objective: Callable[..., Objective] | None = None
    count: int = 0
    published: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = lambda weights: weights


@dataclass(eq=False)
class ModelJob:
    """One model to train and publish.

    Attributes:
        title: what messages call it.
        where: the recipe's key of its section, such as `teachers.bert`.
        identity: fingerprint of all that determines the model.
        prepare: reads its rows and builds what it needs; an error is this job's own failure.
        final, checkpoints, tensorboard: the folders of the published model, of its checkpoints and of its curves.
        data_parallel: whether all ranks train it, each on its share of a batch.
        order: the seed of the order of rows; None: the spec's.
        pause: the epoch after which training pauses, for a comparison with other models; None: it does not.
        keep_last: publish the last weights, whatever their score.
        freezes: whether parameters that no loss depends on are frozen: engines would wait for their gradients.
        hands_on: whether weights of lasting losses are saved beside the model, for the phase that follows.
        peers: whether other students learn from it while it trains.
        keeps: saves the weights of each epoch; None: they are not kept.
        early: by epoch, the teachers whose weights are those of this one at its end; they are published on the way.
        log_settings: adds its row to TensorBoard's table of hyper-parameters.
    """

    title: str
    where: str
    spec: TrainSpec
    identity: str
    prepare: Callable[[], Prepared]
    final: Path
    checkpoints: Path
    tensorboard: Path
    data_parallel: bool = True
    order: int | None = None
    pause: int | None = None
    keep_last: bool = False
    freezes: bool = False
    hands_on: bool = False
    peers: bool = False
    keeps: KeepEpoch | None = None
    early: dict[int, list[ModelJob]] = field(default_factory=dict)
    log_settings: Callable[[dict[str, Any]], None] = lambda metrics: None


@dataclass
class Trained:
    """The outcome of one job: its metrics, or the error that it failed with, or neither where it is paused."""

    job: ModelJob
    metrics: dict[str, Any] | None = None
    error: Exception | None = None


@dataclass
class _Built:
    """A job with all that was built for it."""

    job: ModelJob
    prepared: Prepared
    training: TrainJob
    parameters: int
    trained: int  # number of parameters that are not frozen

    @property
    def rows(self) -> int:
        return len(self.training.rows.lengths)


def train_model(job: ModelJob, world: World, stop: StopRequest) -> dict[str, Any]:
    """Train a model, keep the best weights by the spec's metric and publish them; returns the metrics.

    Raises:
        Stopped: asked to stop, after a checkpoint.
        Diverged: the loss is not finite.
    """
    (trained,) = train_models([job], world, stop)
    if trained.error is not None:
        raise trained.error
    return trained.metrics or {}


def train_models(
    jobs: list[ModelJob], world: World, stop: StopRequest, make_steps: MakeSteps = in_turn
) -> Iterator[Trained]:
    """Train models side by side; yields each as soon as it has ended and is published.

    Raises:
        Stopped: asked to stop, after a checkpoint of each that is left.
        torch.OutOfMemoryError: they do not fit together.
    """
    known: dict[TrainJob, _Built] = {}
    for job in jobs:
        try:
            built = _build(job, world, stop)
            known[built.training] = built
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            yield Trained(job, error=error)
    if not known:
        return
    peers = []
    for ended in fit_all(list(known), make_steps):
        built = known[ended.job]
        if ended.error is not None:
            yield Trained(built.job, error=ended.error)
            continue
        try:
            metrics = None if ended.paused else _finish(built, ended, world)
        except Exception as error:
            yield Trained(built.job, error=error)
            continue
        if metrics is not None and built.job.peers:
            peers.append(built.job.checkpoints)  # a peer that is not published yet needs them to continue
        elif metrics is not None and ended.job.engine.rank == 0:
            remove_checkpoints(built.job.checkpoints)
        yield Trained(built.job, metrics)
    for checkpoints in peers:
        remove_checkpoints(checkpoints)


def _build(job: ModelJob, world: World, stop: StopRequest) -> _Built:
    """Build the model and everything around it."""
    spec = job.spec
    prepared = job.prepare()
    precision = resolve_precision(spec.precision, world.device, f"{job.where}.precision")
    assert spec.seed is not None
    torch.manual_seed(spec.seed)
    model = build_model(world, prepared.make, data_parallel=job.data_parallel)
    parameters = parameter_count(model)
    losses = prepared.losses(model)
    together = job.data_parallel and world.size > 1
    make = prepared.objective or functools.partial(Objective, ask=prepared.outputs)
    objective = make(model, losses, together=together)
    feed = prepared.feed(losses)
    try:
        if job.freezes:
            alone = make(model, losses)
            freeze_unreached(alone, feed, prepared.terms, world, together=together)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        engine = build_engine(world, objective, spec, data_parallel=job.data_parallel, precision=precision)
    except InputError as error:
        raise InputError([f"{job.where}.{problem}" for problem in error.problems]) from None
    own.without_mask_checks(engine.module, world.device)
    skip_padding(engine.module, world.device)
    training = TrainJob(
        title=job.title,
        spec=spec,
        engine=engine,
        feed=feed,
        evaluate=functools.partial(_evaluate, prepared, precision),
        checkpoints=job.checkpoints,
        tensorboard=job.tensorboard,
        identity=job.identity,
        stop=stop,
        headline=prepared.headline,
        adversary=Adversary(spec.adversarial, engine.inner) if spec.adversarial else None,
        order=job.order,
        pause=job.pause,
        keep_last=job.keep_last,
        peers=job.peers,
        data=prepared.data,
        turns=_turns(prepared.terms) if any(p.requires_grad for p in engine.inner.parameters()) else 0,
    )
    built = _Built(job, prepared, training, parameters, trained)
    if job.keeps is not None:
        training.keep_epoch = functools.partial(_keep_epoch, job.keeps, prepared)
    training.snapshots = {
        epoch: functools.partial(_publish_early, built, others) for epoch, others in job.early.items()
    }
    tell = say if job.data_parallel else say_anywhere
    tell(
        f"{job.title}: {spec.model.type}, {parameters:,} parameters, {prepared.rows}, {precision}, {counted(engine.ranks, 'rank')}"
    )
    return built


def _turns(terms: Sequence[LossSpec]) -> int:
    """How many steps train the losses' weights alone before each step of the model; 0: every step trains both."""
    return max((term.loss.turns(term.parameters()) for term in terms if term.loss.turns is not None), default=0)


def _evaluate(prepared: Prepared, precision: str, model: nn.Module) -> dict[str, float]:
    return prepared.evaluate(model, precision)


def _keep_epoch(keep: KeepEpoch, prepared: Prepared, epoch: int, weights: Mapping[str, torch.Tensor]) -> None:
    keep(epoch, prepared.published(weights))


def _finish(built: _Built, ended: Ended, world: World) -> dict[str, Any]:
    """Publish the best weights; returns the metrics."""
    job, engine, monitor = built.job, ended.job.engine, ended.monitor
    assert monitor is not None
    if ended.job.adversary:
        ended.job.adversary.close()
    metrics = _metrics(built, ended.position)
    lasting: dict[str, torch.Tensor] = {}
    if job.hands_on and isinstance(engine.module, Objective):
        names = tuple(f"{name}." for name in lasting_losses(engine.module.losses))
        lasting = {name: weight for name, weight in engine.loss_weights().items() if name.startswith(names)}

    def publish() -> None:
        _publish(job, built.prepared, engine.with_weights(ended.best), metrics, ended.position, lasting)
        job.log_settings(metrics)

    try:
        if job.data_parallel:
            world.run_on_main(publish)  # where it fails, it fails on all ranks
        else:
            publish()
    finally:
        monitor.close()
        ended.job.close()
    return metrics


def _publish_early(built: _Built, others: list[ModelJob], weights: dict[str, torch.Tensor], position: Position) -> None:
    """Publish the teachers whose weights are those of this one at the end of an earlier epoch."""
    here = replace(position, best_step=position.step, best_epoch=float(position.epoch))
    model = built.training.engine.with_weights(weights)
    for other in others:
        metrics = _metrics(built, here)
        _publish(other, other.prepare(), model, metrics, here)
        other.log_settings(metrics)


def _metrics(built: _Built, position: Position) -> dict[str, Any]:
    """Scores of the best evaluation, and what the training took."""
    best = next(h for h in position.history if h["split"] == "valid" and h["step"] == position.best_step)
    return {
        **{name: value for name, value in best.items() if name not in ("step", "epoch", "split")},
        "split": "valid",
        "parameters": built.parameters,
        **({"trained_parameters": built.trained} if built.trained < built.parameters else {}),
        "best_epoch": position.best_epoch,
        "best_step": position.best_step,
        "steps": position.step,
        "training_rows": built.rows,
        "seconds": round(position.seconds, 3),
        **built.prepared.metrics(position),
        "checkpoint_seconds": round(position.checkpoint_seconds, 3),
    }


def _publish(
    job: ModelJob,
    prepared: Prepared,
    model: nn.Module,
    metrics: dict[str, Any],
    position: Position,
    lasting: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> None:
    evaluations = [entry for entry in position.history if entry["split"] == "valid"]
    metrics["remarks"] = prepared.remarks(evaluations, metrics)
    with publish_folder(job.final) as folder:
        prepared.save(model, folder, metrics)
        if lasting:
            write_weights(lasting, folder / LOSSES)
        metrics["bytes"] = (folder / "model.safetensors").stat().st_size
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "history.json", prepared.history(position.history))
        mark_done(folder, job.identity)
    kept = "its last weights" if job.keep_last else f"best {job.spec.metric} at epoch {position.best_epoch:g}"
    line = f"{job.title}: {kept}: {prepared.headline(metrics)} on valid"
    say_anywhere(f"{line}; {prepared.took(metrics)} -> {job.final}")
    for remark in metrics["remarks"]:
        say_anywhere(f"{job.title}: REMARK: {remark}")

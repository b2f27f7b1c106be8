"""Train models of a recipe into their model folders: a teacher over all ranks, students on this one."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dtrain.augment.noisy import noisy_rows
from dtrain.data import Part, PreparedData, tokenizer_name
from dtrain.distributed import World
from dtrain.knowledge.reader import StoreReader
from dtrain.log import say, say_anywhere
from dtrain.losses import build_losses
from dtrain.models import build, parameter_count, save_model
from dtrain.recipe.schema import Recipe
from dtrain.recipe.training import LossSpec, Student, Teacher
from dtrain.runfolder import RunFolder, mark_done, publish_folder, write_json
from dtrain.training.adversarial import Adversary
from dtrain.training.checkpoint import remove_checkpoints
from dtrain.training.engine import build_engine, build_model
from dtrain.training.inference import BATCH_TOKENS
from dtrain.training.loop import Ended, Fit, MakeSteps, Position, fit_all, in_turn
from dtrain.training.monitor import log_hyperparameters
from dtrain.training.precision import resolve_precision
from dtrain.training.remarks import remarks
from dtrain.training.stop import StopRequest
from dtrain.training.task import Task
from dtrain.training.tasks import task_of


@dataclass(eq=False)
class Member:
    """A teacher or student with what it needs for training.

    Attributes:
        rows: what it is trained on, where that was read already, for several members.
        order: the seed of the order of rows; None: the spec's.
        pause: epochs after which to stop for a look at the scores.
        early: by epoch, teachers that are this one at its end, to be published on the way.
    """

    kind: str  # teachers | students
    spec: Teacher | Student
    identity: str
    stores: dict[str, StoreReader]  # by teacher; empty for teachers and from-scratch students
    rows: Part | None = None
    order: int | None = None
    pause: int | None = None
    early: dict[int, list[Member]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.kind[:-1]} {self.spec.name}"

    @property
    def together(self) -> bool:
        """Whether all ranks train it, each on its share of a batch."""
        return isinstance(self.spec, Teacher) or self.spec.parallel == "data"

    @property
    def peers(self) -> bool:
        return isinstance(self.spec, Student) and self.spec.peers is not None


@dataclass
class Trained:
    """What came of one member: its metrics; or the reason of its failure; or neither, where it is paused."""

    member: Member
    metrics: dict[str, Any] | None = None
    error: Exception | None = None


def train_member(
    member: Member, recipe: Recipe, data: PreparedData, world: World, folder: RunFolder, stop: StopRequest
) -> dict[str, Any]:
    """Train, keep the best weights by the member's metric, publish the folder; returns its metrics.

    Raises:
        Stopped: asked to stop, after a checkpoint.
        Diverged: the loss is not finite.
    """
    (trained,) = train_members([member], recipe, data, world, folder, stop)
    if trained.error is not None:
        raise trained.error
    return trained.metrics or {}


def train_members(
    members: list[Member],
    recipe: Recipe,
    data: PreparedData,
    world: World,
    folder: RunFolder,
    stop: StopRequest,
    make_steps: MakeSteps = in_turn,
) -> Iterator[Trained]:
    """Train members side by side; each comes out, published, as soon as it has ended.

    Raises:
        Stopped: asked to stop, after a checkpoint of each that is left.
        torch.OutOfMemoryError: they do not fit together.
    """
    known: dict[Fit, tuple[Member, int]] = {}  # and its number of parameters
    task = task_of(data)
    for member in members:
        try:
            job, parameters = _prepare(member, task, recipe, data, world, folder, stop)
            known[job] = (member, parameters)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            yield Trained(member, error=error)
    peers = []
    for ended in fit_all(list(known), make_steps):
        member, parameters = known[ended.job]
        if ended.error is not None:
            yield Trained(member, error=ended.error)
            continue
        try:
            metrics = None
            if not ended.paused:
                metrics = _metrics(ended.position, parameters, len(ended.job.units))
                _finish(member, ended, metrics, task, recipe, data, world, folder)
        except Exception as error:
            yield Trained(member, error=error)
            continue
        if metrics is not None and member.peers:
            peers.append(ended.job.checkpoints)  # a peer that is not published yet goes on from all of them
        elif metrics is not None and ended.job.engine.rank == 0:
            remove_checkpoints(ended.job.checkpoints)
        yield Trained(member, metrics)
    for checkpoints in peers:
        remove_checkpoints(checkpoints)


def training_rows(spec: Teacher | Student, data: PreparedData) -> Part:
    """What a member is trained on."""
    tokenizer = tokenizer_name(spec)
    names = (spec.rows if isinstance(spec, Student) else None) or ["train"]
    return Part.concat([data.part(name, tokenizer) for name in ("train", "transfer") if name in names])


def _prepare(
    member: Member, task: Task, recipe: Recipe, data: PreparedData, world: World, folder: RunFolder, stop: StopRequest
) -> tuple[Fit, int]:
    """Build the model and everything around it; also the number of its parameters."""
    spec, together = member.spec, member.together
    tokenizer = tokenizer_name(spec)
    train = training_rows(spec, data) if member.rows is None else member.rows
    if isinstance(spec, Student) and spec.noisy:
        train = noisy_rows(train, member.stores, spec.noisy)
    valid = data.part("valid", tokenizer)
    precision = resolve_precision(spec.precision, world.device, f"{member.kind}.{spec.name}.precision")

    assert spec.seed is not None
    torch.manual_seed(spec.seed)

    def make() -> torch.nn.Module:
        return build(
            spec.model,
            vocabulary=data.vocabulary(tokenizer),
            labels=data.labels,
            pad_id=data.pad_id(tokenizer),
            tokenizer_path=data.tokenizer_path(tokenizer),
            max_length=recipe.data.max_length,
        )

    model = build_model(world, make, together=together)
    parameters = parameter_count(model)
    engine = build_engine(world, model, spec, together=together, precision=precision)
    losses = build_losses(task.teacher_losses(spec) if isinstance(spec, Teacher) else spec.losses or [])

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return task.scores(
            model,
            valid,
            world,
            precision=precision,
            batch_tokens=recipe.knowledge.batch_tokens or BATCH_TOKENS,
            distributed=together,
        )

    tell = say if together else say_anywhere
    tell(
        f"{member.title}: {spec.model.type}, {parameters:,} parameters, {len(train):,} rows, {precision}, "
        f"{engine.ranks} rank{'s' if engine.ranks > 1 else ''}"
    )
    job = Fit(
        title=member.title,
        spec=spec,
        engine=engine,
        rows=train,
        units=task.units(train),
        loss=task.loss(losses, train, member.stores, world.device),
        evaluate=evaluate,
        checkpoints=folder.checkpoints(member.kind, spec.name),
        tensorboard=folder.tensorboard(member.kind, spec.name),
        identity=member.identity,
        stop=stop,
        headline=task.headline,
        adversary=Adversary(spec.adversarial, engine.bare) if spec.adversarial else None,
        order=member.order,
        pause=member.pause,
        peers=member.peers,
        data=recipe.data.model_dump(mode="json"),
    )

    def take(others: list[Member], weights: dict[str, torch.Tensor], position: Position) -> None:
        here = replace(position, best_step=position.step, best_epoch=float(position.epoch))
        model = engine.with_weights(weights)
        for other in others:
            metrics = _metrics(here, parameters, len(train))
            _publish(other, model, metrics, here, task, recipe, data, folder)
            tensorboard = folder.tensorboard(other.kind, other.spec.name)
            log_hyperparameters(tensorboard, other.spec, _terms(other.spec, task), metrics)

    job.takers = {epoch: functools.partial(take, others) for epoch, others in member.early.items()}
    return job, parameters


def _finish(
    member: Member,
    ended: Ended,
    metrics: dict[str, Any],
    task: Task,
    recipe: Recipe,
    data: PreparedData,
    world: World,
    folder: RunFolder,
) -> None:
    """Publish the best weights."""
    job, spec, engine, monitor = ended.job, member.spec, ended.job.engine, ended.monitor
    assert monitor is not None
    if job.adversary:
        job.adversary.close()

    def publish() -> None:
        _publish(member, engine.with_weights(ended.best), metrics, ended.position, task, recipe, data, folder)
        log_hyperparameters(job.tensorboard, spec, _terms(spec, task), metrics)

    try:
        if member.together:
            world.main_first(publish)  # where it fails, it fails on all ranks
        else:
            publish()
    finally:
        monitor.close()
        engine.close()


def _metrics(position: Position, parameters: int, rows: int) -> dict[str, Any]:
    valid = next(h for h in position.history if h["split"] == "valid" and h["step"] == position.best_step)
    seconds = position.seconds
    return {
        **{k: v for k, v in valid.items() if k not in ("step", "epoch", "split")},
        "split": "valid",
        "parameters": parameters,
        "best_epoch": position.best_epoch,
        "best_step": position.best_step,
        "steps": position.step,
        "training_rows": rows,
        "seconds": round(seconds, 3),
        "seconds_per_epoch": round(seconds * rows / position.rows, 3),
        "rows_per_second": round(position.rows / seconds, 2),
        "checkpoint_seconds": round(position.checkpoint_seconds, 3),
    }


def _publish(
    member: Member,
    model: torch.nn.Module,
    metrics: dict[str, Any],
    position: Position,
    task: Task,
    recipe: Recipe,
    data: PreparedData,
    folder: RunFolder,
) -> None:
    spec = member.spec
    final = folder.model(member.kind, spec.name)
    evaluations = [entry for entry in position.history if entry["split"] == "valid"]
    gold = data.part("valid", tokenizer_name(spec)).labels
    metrics["remarks"] = remarks(evaluations, metrics, gold, [] if task.types else task.labels)
    with publish_folder(final) as aside:
        save_model(model, aside, data.tokenizer_path(tokenizer_name(spec)), _card(member, metrics, task))
        metrics["bytes"] = (aside / "model.safetensors").stat().st_size
        write_json(aside / "metrics.json", metrics)
        write_json(aside / "history.json", position.history)
        # With it the folder labels new text anywhere (`dtrain.stages.predict.classify`).
        normalize = recipe.data.normalize.model_dump(mode="json")
        prepared = {"task": recipe.data.task, "normalize": normalize, "max_length": recipe.data.max_length}
        write_json(aside / "preprocessing.json", prepared)
        mark_done(aside, member.identity)
    line = f"{member.title}: best {spec.metric} at epoch {position.best_epoch:g}: {task.headline(metrics)}"
    say_anywhere(f"{line}; {metrics['seconds_per_epoch']:.1f} s an epoch -> {final}")
    for remark in metrics["remarks"]:
        say_anywhere(f"{member.title}: REMARK: {remark}")


def _terms(spec: Teacher | Student, task: Task) -> Sequence[LossSpec]:
    return spec.losses or [] if isinstance(spec, Student) else task.teacher_losses(spec)


def _weight(loss: LossSpec) -> str:
    weight = loss.weight
    return f"{weight:g}" if isinstance(weight, float) else f"({weight.start:g} to {weight.end:g}, {weight.shape})"


def _card(member: Member, metrics: dict[str, Any], task: Task) -> str:
    """The model card: what it is, how it was made, what it scores."""
    spec = member.spec
    teachers = ", ".join(member.stores) or "none"
    losses = ", ".join(f"{_weight(loss)} x {loss.type}" for loss in _terms(spec, task))
    names = task.types or task.labels
    shown = ", ".join(names[:40]) + (" ..." if len(names) > 40 else "")
    return (
        f"---\nlibrary_name: dtrain\npipeline_tag: {task.card_tag}\n---\n# {spec.name}\n\n"
        f"A {spec.model.type} {member.kind[:-1]} trained by dtrain on {metrics['training_rows']:,} rows "
        f"({time.strftime('%Y-%m-%d')}).\n\n"
        f"- {'entity types' if task.types else 'labels'}: {shown}\n- teachers: {teachers}\n- losses: {losses}\n"
        f"- parameters: {metrics['parameters']:,}\n"
        f"- optimizer: {spec.optimizer.type}, rate {spec.optimizer.lr:g}, {spec.epochs} epochs, seed {spec.seed}\n"
        f"- validation rows: {metrics['rows']:g}, {task.headline(metrics)} "
        f"(the best of the evaluations, on the same rows that chose it)\n\n"
        "Load it with `dtrain.load(folder)`.\n"
    )

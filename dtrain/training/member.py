"""Train one model of a recipe, a teacher over all ranks or a student on this one, into its model folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from dtrain.data import Part, PreparedData, tokenizer_name
from dtrain.distributed import World
from dtrain.knowledge import StoreReader
from dtrain.log import say, say_anywhere
from dtrain.losses import build_losses
from dtrain.models import build, parameter_count, save_model
from dtrain.recipe.schema import Recipe, Student, Teacher
from dtrain.runfolder import RunFolder, mark_done, publish_folder, write_json
from dtrain.training.adversarial import Adversary
from dtrain.training.checkpoint import remove_checkpoints
from dtrain.training.engine import build_engine, resolve_precision
from dtrain.training.loop import Fit, Position, fit
from dtrain.training.stop import StopRequest
from dtrain.training.task import Task
from dtrain.training.tasks import task_of


@dataclass
class Member:
    """A teacher or student with what it needs for training."""

    kind: str  # teachers | students
    spec: Teacher | Student
    identity: str
    stores: dict[str, StoreReader]  # by teacher; empty for teachers and from-scratch students

    @property
    def title(self) -> str:
        return f"{self.kind[:-1]} {self.spec.name}"


def train_member(
    member: Member, recipe: Recipe, data: PreparedData, world: World, folder: RunFolder, stop: StopRequest
) -> dict[str, Any]:
    """Train, keep the best weights by the member's metric, publish the folder; returns its metrics.

    Raises:
        Stopped: asked to stop, after a checkpoint.
        Diverged: the loss is not finite.
    """
    spec, together = member.spec, member.kind == "teachers"
    tokenizer = tokenizer_name(spec)
    train, valid = data.part("train", tokenizer), data.part("valid", tokenizer)
    if "transfer" in (getattr(spec, "rows", None) or ["train"]):
        transfer = data.part("transfer", tokenizer)
        train = Part.concat([train, transfer]) if "train" in spec.rows else transfer  # type: ignore[union-attr,operator]
    precision = resolve_precision(spec.precision, world.device, f"{member.kind}.{spec.name}.precision")

    assert spec.seed is not None
    torch.manual_seed(spec.seed)
    model = build(
        spec.model,
        vocabulary=data.vocabulary(tokenizer),
        labels=data.labels,
        pad_id=data.pad_id(tokenizer),
        tokenizer_path=data.tokenizer_path(tokenizer),
        max_length=recipe.data.max_length,
    )
    parameters = parameter_count(model)
    engine = build_engine(world, model, spec, together=together, precision=precision)

    task = task_of(data)
    losses = build_losses(task.teacher_losses(spec) if isinstance(spec, Teacher) else spec.losses or [])
    adversary = Adversary(spec.adversarial, engine.bare) if spec.adversarial else None

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return task.scores(
            model,
            valid,
            world,
            precision=precision,
            batch_tokens=recipe.knowledge.batch_tokens,
            distributed=together,
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
        adversary=adversary,
    )
    tell = say if together else say_anywhere
    tell(
        f"{member.title}: {spec.model.type}, {parameters:,} parameters, {len(train):,} rows, {precision}, "
        f"{engine.ranks} rank{'s' if engine.ranks > 1 else ''}"
    )
    best, position, monitor = fit(job)
    if adversary:
        adversary.close()
    metrics = _metrics(position, parameters, len(train))
    if engine.rank == 0:
        _publish(member, engine.with_weights(best), metrics, position, task, recipe, data, folder)
        hyper = {
            "model": spec.model.type,
            "lr": spec.optimizer.lr,
            "epochs": spec.epochs,
            "seed": spec.seed,
            "losses": "+".join(losses.names),
        }
        monitor.hyperparameters(hyper, {k: metrics[k] for k in ("accuracy", "f1", "loss")})
    monitor.close()
    if together:
        world.wait_for_all("published")
    engine.close()
    if engine.rank == 0:
        remove_checkpoints(job.checkpoints)
    return metrics


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


def _card(member: Member, metrics: dict[str, Any], task: Task) -> str:
    """The model card: what it is, how it was made, what it scores."""
    spec = member.spec
    teachers = ", ".join(member.stores) or "none"
    terms = spec.losses or [] if isinstance(spec, Student) else task.teacher_losses(spec)
    losses = ", ".join(f"{loss.weight:g} x {loss.type}" for loss in terms)
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

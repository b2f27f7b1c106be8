"""Train one model of a recipe, a teacher over all ranks or a student on this one, into its model folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dtrain.data import Part, PreparedData, tokenizer_name
from dtrain.distributed import World
from dtrain.knowledge import StoreReader
from dtrain.log import say, say_anywhere
from dtrain.losses import build_losses
from dtrain.models import build, parameter_count, save_model
from dtrain.recipe.schema import LossSpec, Recipe, Student, Teacher
from dtrain.runfolder import RunFolder, mark_done, publish_folder, write_json
from dtrain.training.checkpoint import remove_checkpoints
from dtrain.training.engine import Engine, resolve_precision
from dtrain.training.evaluation import evaluate_part
from dtrain.training.loop import Fit, Position, fit
from dtrain.training.optim import build_optimizer
from dtrain.training.stop import StopRequest


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
    engine = Engine(world, model, build_optimizer(model, spec.optimizer), together=together, precision=precision)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return evaluate_part(
            model,
            valid,
            world,
            classes=len(data.labels),
            precision=precision,
            batch_tokens=recipe.knowledge.batch_tokens,
            distributed=together,
        )

    job = Fit(
        title=member.title,
        spec=spec,
        engine=engine,
        rows=train,
        loss=_loss_function(member, train, world.device),
        evaluate=evaluate,
        checkpoints=folder.checkpoints(member.kind, spec.name),
        tensorboard=folder.tensorboard(member.kind, spec.name),
        identity=member.identity,
        stop=stop,
    )
    tell = say if together else say_anywhere
    tell(
        f"{member.title}: {spec.model.type}, {parameters:,} parameters, {len(train):,} rows, {precision}, "
        f"{engine.ranks} rank{'s' if engine.ranks > 1 else ''}"
    )
    best, position, monitor = fit(job)
    metrics = _metrics(position, parameters, len(train))
    if engine.rank == 0:
        model.load_state_dict(best)
        _publish(member, model.cpu(), metrics, position, recipe, data, folder)
        hyper = {
            "model": spec.model.type,
            "lr": spec.optimizer.lr,
            "epochs": spec.epochs,
            "seed": spec.seed,
            "losses": "+".join(loss.type for loss in getattr(spec, "losses", None) or []) or "cross_entropy",
        }
        monitor.hyperparameters(hyper, {k: metrics[k] for k in ("accuracy", "f1", "loss")})
    monitor.close()
    if together:
        world.wait_for_all("published")
        world.accelerator.free_memory()  # it keeps every model it has prepared
    if engine.rank == 0:
        remove_checkpoints(job.checkpoints)
    return metrics


def _loss_function(member: Member, rows: Part, device: torch.device) -> Any:
    """The member's weighted loss over rows of a part, teachers' outputs joined by row id."""
    if member.kind == "teachers":
        smoothing = getattr(member.spec, "label_smoothing", 0.0)
        specs = [LossSpec.model_validate({"type": "cross_entropy", "label_smoothing": smoothing})]
    else:
        specs = member.spec.losses  # type: ignore[union-attr,assignment]
    losses = build_losses(specs)

    def loss(model: torch.nn.Module, index: np.ndarray) -> Any:
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in rows.collate(index).items()}
        labels = torch.from_numpy(rows.labels[index]).to(device, non_blocking=True)
        ids = rows.ids[index]
        teachers = {name: store.logits(ids).to(device, non_blocking=True) for name, store in member.stores.items()}
        return losses(model(**batch).logits, labels, teachers)

    return loss


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
    recipe: Recipe,
    data: PreparedData,
    folder: RunFolder,
) -> None:
    spec = member.spec
    final = folder.model(member.kind, spec.name)
    with publish_folder(final) as aside:
        save_model(model, aside, data.tokenizer_path(tokenizer_name(spec)), _card(member, metrics, data))
        metrics["bytes"] = (aside / "model.safetensors").stat().st_size
        write_json(aside / "metrics.json", metrics)
        write_json(aside / "history.json", position.history)
        # With it the folder labels new text anywhere (`dtrain.stages.predict.classify`).
        normalize = recipe.data.normalize.model_dump(mode="json")
        write_json(aside / "preprocessing.json", {"normalize": normalize, "max_length": recipe.data.max_length})
        mark_done(aside, member.identity)
    scores = f"accuracy {metrics['accuracy']:.4f}, f1 {metrics['f1']:.4f}"
    line = f"{member.title}: best {spec.metric} at epoch {position.best_epoch:g}: {scores}"
    say_anywhere(f"{line}; {metrics['seconds_per_epoch']:.1f} s an epoch -> {final}")


def _card(member: Member, metrics: dict[str, Any], data: PreparedData) -> str:
    """The model card: what it is, how it was made, what it scores."""
    spec = member.spec
    teachers = ", ".join(member.stores) or "none"
    losses = (
        ", ".join(f"{loss.weight:g} x {loss.type}" for loss in getattr(spec, "losses", None) or []) or "cross_entropy"
    )
    labels = ", ".join(data.labels[:40]) + (" ..." if len(data.labels) > 40 else "")
    return (
        f"---\nlibrary_name: dtrain\npipeline_tag: text-classification\n---\n# {spec.name}\n\n"
        f"A {spec.model.type} {member.kind[:-1]} trained by dtrain on {metrics['training_rows']:,} rows "
        f"({time.strftime('%Y-%m-%d')}).\n\n"
        f"- labels: {labels}\n- teachers: {teachers}\n- losses: {losses}\n- parameters: {metrics['parameters']:,}\n"
        f"- optimizer: {spec.optimizer.type}, rate {spec.optimizer.lr:g}, {spec.epochs} epochs, seed {spec.seed}\n"
        f"- validation rows: {metrics['rows']:g}, accuracy {metrics['accuracy']:.4f}, macro F1 {metrics['f1']:.4f} "
        f"(the best of the evaluations, on the same rows that chose it)\n\n"
        "Load it with `dtrain.load(folder)`.\n"
    )

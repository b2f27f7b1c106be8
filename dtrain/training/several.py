"""A student of several tasks as a job: the jobs of its tasks, with one model, one order of batches and one score."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dtrain.data import tokenizer_name
from dtrain.data.preprocessing import write_preprocessing_of_tasks
from dtrain.errors import DtrainError, InputError, counted
from dtrain.losses.objective import LossSum, Objective
from dtrain.losses.several import TaskLosses, TasksObjective
from dtrain.metrics.tasks import MEAN, joined_scores, scores_of
from dtrain.models import build, save_model
from dtrain.recipe.several import exponent_of
from dtrain.recipe.training import Student
from dtrain.runfolder import RunFolder, read_json
from dtrain.tasks.rules import rules_of
from dtrain.training.card import card_head
from dtrain.training.job import Position
from dtrain.training.model_job import Prepared
from dtrain.training.tasks_feed import TasksFeed

if TYPE_CHECKING:
    from dtrain.tasks.prepared import PreparedTask

ENCODER = "encoder"  # in the model's folder: the encoder alone, as a transformers model that others can begin with


def prepare_tasks(
    spec: Student,
    tasks: Mapping[str, PreparedTask],
    prepared: Mapping[str, Prepared],
    begin: Callable[[nn.Module], None],
    baseline: Mapping[str, float],
) -> Prepared:
    """What a student of several tasks trains with.

    Args:
        tasks: the student's tasks by name, in its order; the model has a head for each.
        prepared: by task, what a student of that task alone would train with; in a phase, for the phase's tasks only.
        begin: copies initial weights into a new model.
        baseline: by task, the number that its metric is divided by in the mean.
    """
    first = next(iter(tasks.values()))
    tokenizer = tokenizer_name(spec)
    path = first.data.tokenizer_path(tokenizer)

    def make() -> nn.Module:
        model = build(
            spec.model,
            vocabulary=first.data.vocabulary(tokenizer),
            labels=[],
            pad_id=first.data.pad_id(tokenizer),
            tokenizer_path=path,
            max_length=max(of.section.max_length for of in tasks.values()),
            heads={
                name: {"tags": rules_of(of.section.task).tags, "labels": of.data.labels, "config": of.kind.config}
                for name, of in tasks.items()
            },
        )
        begin(model)
        return model

    def losses(model: Any) -> TaskLosses:
        found: dict[str, LossSum] = {}
        for name, one in prepared.items():
            of_task = one.losses(model.of_task(name))
            assert isinstance(of_task, LossSum)
            found[name] = of_task
        return TaskLosses(found)

    def feed(losses: nn.Module) -> TasksFeed:
        assert isinstance(losses, TaskLosses)
        return TasksFeed({name: one.feed(losses[name]) for name, one in prepared.items()}, exponent_of(spec.mixing))

    def evaluate(model: Any, precision: str) -> dict[str, float]:
        scores = {name: one.evaluate(model.of_task(name), precision) for name, one in prepared.items()}
        return joined_scores(scores, spec.metrics, baseline)

    def speed(position: Position) -> dict[str, Any]:
        rows = sum(one.count for one in prepared.values())
        return {
            "seconds_per_epoch": round(position.seconds * rows / position.rows, 3),
            "rows_per_second": round(position.rows / position.seconds, 2),
            **({"baseline": dict(baseline)} if spec.measures else {}),
        }

    def headline(scores: Mapping[str, Any]) -> str:
        of_tasks = [f"{name} {one.headline(scores_of(scores, name))}" for name, one in prepared.items()]
        return f"mean {scores[MEAN]:.4f} ({'; '.join(of_tasks)})"

    def remarks(evaluations: list[dict[str, Any]], kept: Mapping[str, Any]) -> list[str]:
        return [
            f"{name}: {remark}"
            for name, one in prepared.items()
            for remark in one.remarks([scores_of(each, name) for each in evaluations], scores_of(kept, name))
        ]

    def save(model: Any, folder: Path, metrics: dict[str, Any]) -> None:
        card = _card(spec, tasks, headline(metrics), metrics)
        save_model(model, folder, path, card)
        encoder = f"# {spec.name}: its encoder\n\nBegin another model with it: `pretrained: {ENCODER}`'s path.\n"
        save_model(model.encoder, folder / ENCODER, path, encoder)
        write_preprocessing_of_tasks(folder, {name: (of.section, of.data.info) for name, of in tasks.items()})

    return Prepared(
        make=make,
        losses=losses,
        outputs=first.kind.ask,
        objective=functools.partial(_objective, prepared),
        feed=feed,
        evaluate=evaluate,
        headline=headline,
        metrics=speed,
        save=save,
        terms=spec.all_losses,
        rows=f"{counted(sum(one.count for one in prepared.values()), 'row')} of {counted(len(prepared), 'task')}",
        count=sum(one.count for one in prepared.values()),
        took=first_took,
        remarks=remarks,
        data={name: of.section.model_dump(mode="json") for name, of in tasks.items()},
    )


def baseline_of(spec: Student, folder: RunFolder) -> dict[str, float]:
    """By task, what its metric is divided by in the mean: a number of the recipe, or the mean score of its teachers.

    Raises:
        DtrainError: a teacher is not trained yet.
        InputError: the teachers' score is not above 0.
    """
    found: dict[str, float] = {task: value for task, value in spec.baseline.items() if isinstance(value, float)}
    for task, names in spec.measures.items():
        metric, scores = spec.metrics[task], []
        for name in names:
            try:
                scores.append(float(read_json(folder.model("teachers", name) / "metrics.json")[metric]))
            except (OSError, ValueError, KeyError) as error:
                where = f"students.{spec.name}.baseline.{task}"
                raise DtrainError(f"{where}: {name} has no score yet; run the stage `finetune` first") from error
        found[task] = statistics.fmean(scores)
        if not found[task] > 0:
            raise InputError(
                f"students.{spec.name}.baseline.{task}: {', '.join(names)}: {metric} {found[task]:g} on the validation rows, "
                "by which nothing can be divided; give a number above 0"
            )
    return found


def _objective(
    prepared: Mapping[str, Prepared], model: nn.Module, losses: nn.Module, *, together: bool = False
) -> Objective:
    assert isinstance(losses, TaskLosses)
    return TasksObjective(model, losses, {name: one.outputs for name, one in prepared.items()}, together=together)


def first_took(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['seconds_per_epoch']:.1f} s an epoch"


def _card(spec: Student, tasks: Mapping[str, PreparedTask], headline: str, metrics: Mapping[str, Any]) -> str:
    """The model card: what it is, how it was made, what it scores."""
    lines = []
    for name, of in tasks.items():
        part = spec.parts.get(name)
        how = "of an earlier phase"
        if part is not None:
            losses = ", ".join(loss.type for loss in part.losses or [])
            how = f"teachers: {', '.join(part.teachers or []) or 'none'}; losses: {losses}"
        lines.append(f"- task `{name}` ({of.section.task}); {of.kind.answer_in_words}; {how}")
    tags: Sequence[str] = list(dict.fromkeys(of.kind.card_tag for of in tasks.values()))
    rows = counted(metrics["training_rows"], "row")
    shown = f"[{', '.join(tags)}]"
    language = next(iter(tasks.values())).recipe.language  # the recipe's, not the task's
    return (
        f"{card_head(language, tags=shown)}# {spec.name}\n\n"
        f"One encoder with a head for each of {len(tasks)} tasks, trained by dtrain on {rows} ({time.strftime('%Y-%m-%d')}).\n\n"
        + "\n".join(lines)
        + "".join(f"\n- phase {p['name']}: {' and '.join(p['tasks'])}" for p in metrics.get("phases", []))
        + f"\n- parameters: {metrics['parameters']:,}\n"
        f"- optimizer: {spec.optimizer.type}, rate {spec.optimizer.lr:g}, {counted(spec.epochs, 'epoch')}, seed {spec.seed}\n"
        f"- on valid: {headline} (the best of the evaluations, on the same rows that chose it)\n\n"
        "Load it with `dtrain.load(folder)` and call it with `task=NAME`, or take `dtrain.Predictor(folder, task=NAME)`. "
        f"`{ENCODER}/` holds the encoder alone, which other models can begin with.\n"
    )

"""Teachers and students of a recipe as jobs: what each is trained on, by which losses, and what its folder says."""

from __future__ import annotations

import functools
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from dtrain.augment.noisy import blank_tokens, noisy_rows
from dtrain.data import EncodedSplit, tokenizer_name
from dtrain.data.preprocessing import write_preprocessing
from dtrain.errors import InputError, counted
from dtrain.losses.layers import Shapes
from dtrain.losses.objective import LossSum, build_losses, with_peers
from dtrain.models import build, describe, load, save_model
from dtrain.models.initial import copy_classifier, copy_layers
from dtrain.models.inside import shape_of
from dtrain.recipe.answers import is_online
from dtrain.recipe.models import encoder_of
from dtrain.recipe.training import LossSpec, Student, Teacher
from dtrain.recipe.values import TAUGHT
from dtrain.runfolder import RunFolder
from dtrain.runtime.distributed import World
from dtrain.teachers.online import OnlineTeacher
from dtrain.teachers.sources import StoredTeacher, TeacherSource
from dtrain.training.card import card_head, use_in_words
from dtrain.training.feed import Feed, Reading
from dtrain.training.job import Position
from dtrain.training.kept_epochs import keeper
from dtrain.training.model_job import ModelJob, Prepared
from dtrain.training.monitor import log_hyperparameters
from dtrain.training.remarks import remarks
from dtrain.training.several import baseline_of, prepare_tasks
from dtrain.training.workers import Workers

if TYPE_CHECKING:
    from dtrain.tasks.prepared import PreparedTasks

UNSCORED = "not scored"  # no validation row with a label has the side that the model reads


class Members:
    """Makes the jobs of one recipe's teachers and students."""

    def __init__(self, tasks: PreparedTasks, world: World, folder: RunFolder) -> None:
        self.tasks, self.world, self.folder = tasks, world, folder

    def teacher(self, spec: Teacher, identity: str) -> ModelJob:
        """The job of a teacher, which all ranks train together."""
        return self._job("teachers", spec, identity, {}, None)

    def student(
        self,
        spec: Student,
        identity: str,
        teachers: Mapping[str, TeacherSource],
        *,
        online: Mapping[str, OnlineTeacher] | None = None,
        order: int | None = None,
        pause: int | None = None,
        reading: Reading | None = None,
        rows: EncodedSplit | None = None,
    ) -> ModelJob:
        """The job of a student.

        Args:
            teachers: the source of each teacher's outputs, by name.
            online: teachers that run beside the student; they may have a store as well.
            order: the seed of the order of rows; None: the spec's.
            pause: the epoch after which training pauses, for a comparison with other models; None: it does not.
            reading: shared by a group of students that read the same rows.
            rows: its training rows, where they were read already.
        """
        job = self._job("students", spec, identity, teachers, reading, rows, online or {})
        job.data_parallel = spec.parallel == "data"
        job.order, job.pause, job.peers = order, pause, spec.peers is not None
        if spec.keep_epochs:
            job.keeps = keeper(self.folder.epochs(spec.name), identity, first_epoch=0)
        return job

    def rows(self, spec: Teacher | Student, teachers: Mapping[str, TeacherSource]) -> EncodedSplit:
        """The training rows of a teacher or student.

        Args:
            teachers: the source of each teacher's outputs, by name; some rows come from a teacher's store.

        Raises:
            InputError: nothing can be learnt from any of the rows.
        """
        tokenizer = tokenizer_name(spec)
        if isinstance(spec, Student):
            names = list(spec.rows or ["train"])
        else:
            names = ["train"] + ["transfer"] * (spec.domain_adversary is not None)
        data, beside = self.tasks.of(spec).data, self.annotations(spec)
        there = data.parts_read(tokenizer)  # of the side that it reads, where rows have several
        parts = [
            data.part(name, tokenizer, beside) for name in ("train", "transfer") if name in names and name in there
        ]
        parts += [self._taught(name, spec, teachers) for name in TAUGHT if name in names]
        rows = EncodedSplit.concat(parts)
        useful = np.arange(len(rows))
        if isinstance(spec, Teacher) and spec.domain_adversary is not None:
            useful = with_drawn(rows, spec.domain_adversary.rows, spec.seed or 0)
        elif spec.reads is not None:
            useful = useful_rows(rows, self.terms(spec), teachers)
        if not len(useful):
            raise InputError("rows: something can be learnt from none of them")
        return rows if len(useful) == len(rows) else rows.take(useful)

    def annotations(self, spec: Teacher | Student) -> Literal["own", "teachers"] | None:
        """Who reads the annotations of its rows: the model itself, a teacher that runs beside it, or nobody (None)."""
        if spec.model.reads_privileged:
            return "own"
        online = spec.asks.online if isinstance(spec, Student) else {}
        readers = (teacher.name for teacher in self.tasks.of(spec).recipe.teachers if teacher.model.reads_privileged)
        return "teachers" if any(name in online for name in readers) else None

    def _taught(self, kind: str, spec: Teacher | Student, teachers: Mapping[str, TeacherSource]) -> EncodedSplit:
        """Rows whose targets were written by the student's only teacher."""
        assert isinstance(spec, Student)
        of, (name,) = self.tasks.of(spec), spec.teachers or []
        source = teachers[name]
        assert isinstance(source, StoredTeacher)
        teacher = next(member for member in of.recipe.teachers if member.name == name)
        rows = of.kind.taught(kind, of.data, tokenizer_name(spec), tokenizer_name(teacher), source.store)
        # A teacher that runs beside the student is asked about these targets, too.
        return replace(rows, known_prefix=None) if spec.answers == "online" else rows

    def _is_scored(self, spec: Teacher | Student) -> bool:
        """Whether there are validation rows to score it on: where rows have several sides, none may have its side."""
        return spec.reads is None or "valid" in self.tasks.of(spec).data.label_counts(tokenizer_name(spec))

    def terms(self, spec: Teacher | Student) -> Sequence[LossSpec]:
        """The terms of the loss that a teacher or student is trained on."""
        if isinstance(spec, Student):
            return spec.all_losses
        terms = self.tasks.of(spec).kind.teacher_losses(spec)
        return terms if spec.domain_adversary is None else [*terms, spec.domain_adversary.loss]

    def _job(
        self,
        kind: str,
        spec: Teacher | Student,
        identity: str,
        teachers: Mapping[str, TeacherSource],
        reading: Reading | None,
        rows: EncodedSplit | None = None,
        online: Mapping[str, OnlineTeacher] = MappingProxyType({}),
    ) -> ModelJob:
        tensorboard = self.folder.tensorboard(kind, spec.name)
        return ModelJob(
            title=f"{kind[:-1]} {spec.name}",
            where=f"{kind}.{spec.name}",
            spec=spec,
            identity=identity,
            prepare=functools.partial(self._prepare, kind, spec, teachers, online, reading, rows)
            if len(self.tasks.all_of(spec)) == 1
            else functools.partial(self._prepare_tasks, spec, teachers, online),
            final=self.folder.model(kind, spec.name),
            checkpoints=self.folder.checkpoints(kind, spec.name),
            tensorboard=tensorboard,
            keep_last=not self._is_scored(spec),
            log_settings=lambda metrics: log_hyperparameters(tensorboard, spec, self.terms(spec), metrics),
        )

    def _prepare_tasks(
        self, spec: Teacher | Student, teachers: Mapping[str, TeacherSource], online: Mapping[str, OnlineTeacher]
    ) -> Prepared:
        """What a student of several tasks trains with, made of what it would train with on each task alone."""
        assert isinstance(spec, Student)
        prepared = {}
        for task, part in spec.parts.items():
            own = {name: source for name, source in teachers.items() if name in part.asks.stored}
            beside = {name: source for name, source in online.items() if name in part.asks.online}
            prepared[task] = self._prepare("students", part, own, beside, None, None)
        begin = functools.partial(self._begin, spec)
        return prepare_tasks(spec, self.tasks.all_of(spec), prepared, begin, baseline_of(spec, self.folder))

    def _begin(self, spec: Teacher | Student, model: nn.Module) -> None:
        """Copy those initial weights into a new model that the recipe takes from a teacher."""
        if spec.model.classifier_of is not None:
            teacher = load(self.folder.model("teachers", spec.model.classifier_of))
            copy_classifier(model, teacher, f"students.{spec.name}.model.classifier: {spec.model.classifier_of}")
        encoder = encoder_of(spec.model)
        if encoder is not None and encoder.init is not None:
            teacher = load(self.folder.model("teachers", encoder.init.source))
            key = f"students.{spec.name}.model" + ("" if encoder is spec.model else ".encoder")
            copy_layers(model, teacher, encoder.init, key)

    def _prepare(
        self,
        kind: str,
        spec: Teacher | Student,
        teachers: Mapping[str, TeacherSource],
        online: Mapping[str, OnlineTeacher],
        reading: Reading | None,
        rows: EncodedSplit | None,
    ) -> Prepared:
        of = self.tasks.of(spec)
        data, task, section, tokenizer = of.data, of.kind, of.section, tokenizer_name(spec)
        train = self.rows(spec, teachers) if rows is None else rows
        noisy = spec.noisy if isinstance(spec, Student) else None
        if noisy:
            stores = {name: source.store for name, source in teachers.items() if isinstance(source, StoredTeacher)}
            if spec.reads is not None:  # rows are chosen by the mean of all teachers, which may read other sides
                answered = [store.holds(train.ids) for store in stores.values()]
                train = train.take(np.flatnonzero((train.labels >= 0) | np.logical_and.reduce(answered)))
            train = noisy_rows(train, stores, noisy)
        valid = (
            data.part("valid", tokenizer, "own" if spec.model.reads_privileged else None)
            if self._is_scored(spec)
            else None
        )
        data_parallel = isinstance(spec, Teacher) or spec.parallel == "data"
        with_others = isinstance(spec, Student) and spec.peers is not None

        def make() -> nn.Module:
            model = build(
                spec.model,
                vocabulary=data.vocabulary(tokenizer),
                labels=data.labels,
                pad_id=data.pad_id(tokenizer),
                tokenizer_path=data.tokenizer_path(tokenizer),
                max_length=section.max_length,
                privileged=data.privileged,
            )
            describe(model, task.config)
            self._begin(spec, model)
            return model

        label_counts = data.label_counts(tokenizer).get("train", {})

        def losses(model: nn.Module) -> LossSum:
            found = build_losses(
                self.terms(spec),
                _widths(model, len(data.labels)) | _row_counts(train),
                _shapes(model, teachers, online, len(data.labels)),
                label_counts,
            )
            return with_peers(found) if with_others else found

        def feed(losses: LossSum) -> Feed:
            return Feed(
                train,
                functools.partial(task.collate, train, needs=losses.needs),
                task.units(train),
                {name: (source, _read(losses, name, spec, online=False)) for name, source in teachers.items()},
                online={name: (source, _read(losses, name, spec, online=True)) for name, source in online.items()},
                device=self.world.device,
                reading=reading,
                piece=_piece(train, losses),
                perturb=functools.partial(blank_tokens, share=noisy.token_noise, part=train) if noisy else None,
            )

        def evaluate(model: nn.Module, precision: str) -> dict[str, float]:
            if valid is None:
                return {}
            tokens = of.recipe.knowledge.batch_tokens
            return task.scores(model, valid, Workers.of(self.world, precision, tokens, shared=data_parallel))

        def speed(position: Position) -> dict[str, Any]:
            return {
                "seconds_per_epoch": round(position.seconds * len(train) / position.rows, 3),
                "rows_per_second": round(position.rows / position.seconds, 2),
            }

        def save(model: nn.Module, folder: Path, metrics: dict[str, Any]) -> None:
            save_model(model, folder, data.tokenizer_path(tokenizer), self._card(kind, spec, metrics))
            write_preprocessing(folder, section, data.info, spec.reads)  # with it the folder can be used anywhere

        return Prepared(
            make=make,
            losses=losses,
            outputs=task.ask,
            feed=feed,
            evaluate=evaluate,
            headline=task.headline if valid is not None else lambda scores: UNSCORED,
            metrics=speed,
            save=save,
            terms=self.terms(spec),
            rows=counted(len(train), "row"),
            count=len(train),
            took=lambda metrics: f"{metrics['seconds_per_epoch']:.1f} s an epoch",
            remarks=lambda evaluations, kept: (
                [] if valid is None else remarks(evaluations, kept, valid.labels, [] if task.types else task.labels)
            ),
            data=section.model_dump(mode="json"),
        )

    def _card(self, kind: str, spec: Teacher | Student, metrics: dict[str, Any]) -> str:
        """The model card: what it is, how it was made, what it scores."""
        teachers = spec.teachers or [] if isinstance(spec, Student) else []
        task = self.tasks.of(spec).kind
        losses = ", ".join(f"{_weight(loss)} x {loss.type}" for loss in self.terms(spec))
        scores = (
            f"validation rows: none with the side that it reads, {spec.reads}; the weights are those of the last epoch"
        )
        if metrics["split"] != "valid":
            scores = f"held-out text: loss {metrics['loss']:.4f}"  # of a phase on plain text
        elif "rows" in metrics:
            best = "the best of the evaluations, on the same rows that chose it"
            scores = f"validation rows: {metrics['rows']:g}, {task.headline(metrics)} ({best})"
        return (
            f"{card_head(self.tasks.of(spec).recipe.language, pipeline_tag=task.card_tag)}# {spec.name}\n\n"
            f"A {spec.model.type} {kind[:-1]} trained by dtrain on {counted(metrics['training_rows'], 'row')} "
            f"({time.strftime('%Y-%m-%d')}).\n\n"
            f"- {task.answer_in_words}\n{self._reads(spec)}- teachers: {', '.join(teachers) or 'none'}\n"
            f"{_phases(metrics.get('phases', []))}- losses: {losses}\n- parameters: {metrics['parameters']:,}\n"
            f"- optimizer: {spec.optimizer.type}, rate {spec.optimizer.lr:g}, {counted(spec.epochs, 'epoch')}, seed {spec.seed}\n"
            f"- {scores}\n{self._use(kind, spec)}"
        )

    def _reads(self, spec: Teacher | Student) -> str:
        """A line of the model card on what it reads beside the text."""
        if not spec.model.reads_privileged:
            return ""
        of = self.tasks.of(spec)
        return (
            f"- reads annotations beside the text, which it cannot answer without: {', '.join(of.data.privileged)} (column "
            f"{of.section.columns.privileged!r} of its rows)\n"
        )

    def _use(self, kind: str, spec: Teacher | Student) -> str:
        """The part of the model card that says how to use the model."""
        of = self.tasks.of(spec)
        beside = of.data.privileged if spec.model.reads_privileged else []
        return use_in_words(self.folder.model(kind, spec.name), of.recipe.data, spec.reads, beside)


def useful_rows(rows: EncodedSplit, terms: Sequence[LossSpec], teachers: Mapping[str, TeacherSource]) -> np.ndarray:
    """Positions of the rows from which something can be learnt, int64 [M], where teachers may read another side.

    These are the rows that have a label and those that a teacher has answered; all rows if a loss needs neither.
    """
    if any(not term.loss.hard and not term.loss.teacher_output for term in terms):
        return np.arange(len(rows))
    useful = rows.labels >= 0
    for name, source in teachers.items():
        read = any(term.loss.teacher_output and (term.teachers is None or name in term.teachers) for term in terms)
        if read:
            useful = useful | (source.store.holds(rows.ids) if isinstance(source, StoredTeacher) else True)
    return np.flatnonzero(useful)


def with_drawn(rows: EncodedSplit, share: float, seed: int) -> np.ndarray:
    """Positions, int64 [M], of the rows with a label and of `share` times as many without one (at most all)."""
    labelled, others = np.flatnonzero(rows.labels >= 0), np.flatnonzero(rows.labels < 0)
    count = min(len(others), max(1, round(share * len(labelled))))
    drawn = np.random.default_rng(seed).choice(others, count, replace=False)
    return np.sort(np.concatenate([labelled, drawn]))


def _phases(phases: list[dict[str, Any]]) -> str:
    """The line of the model card that lists the phases; the lines after it are about the last phase."""
    told = [f"{p['name']} ({' and '.join(p['rows'])}, {' and '.join(p['losses'])})" for p in phases]
    return f"- phases: {', '.join(told)}; of the last one:\n" if told else ""


def _read(losses: LossSum, teacher: str, spec: Teacher | Student, *, online: bool) -> list[str]:
    """The kinds of outputs that are read from a teacher's store, or (`online`) asked of it beside the student."""
    answers = spec.answers if isinstance(spec, Student) else "stored"
    return [output for output in losses.outputs_of(teacher) if is_online(output, answers) == online]


def _shapes(
    model: nn.Module, teachers: Mapping[str, TeacherSource], online: Mapping[str, OnlineTeacher], labels: int
) -> Shapes:
    """The shapes of the transformers of a student and of the teachers that run beside it, and of all teachers' outputs."""
    theirs = {name: shape_of(source.inner) for name, source in online.items()}
    outputs = {name: _widths(source.inner, labels) for name, source in online.items()}
    for name, source in teachers.items():
        if isinstance(source, StoredTeacher):
            stored = {kind: source.store.width(kind) for kind in source.store.outputs}
            outputs[name] = outputs.get(name, {}) | stored
    return Shapes(shape_of(model), {name: shape for name, shape in theirs.items() if shape is not None}, outputs)


def _widths(model: nn.Module, labels: int) -> dict[str, int]:
    """The last dimension of each output of a model that a loss may need, for losses that have weights of their own."""
    widths = dict.fromkeys(("logits", "emissions", "marginals"), labels)
    emissions = getattr(model, "emissions", None)
    if isinstance(emissions, nn.Linear):
        widths["token_features"] = emissions.in_features
    classifier = getattr(model, "classifier", None)
    if isinstance(classifier, nn.Linear):
        widths["features"] = classifier.in_features
    return widths


def _row_counts(rows: EncodedSplit) -> dict[str, int]:
    """The numbers of training rows, labelled rows and pairs, for losses that tell these kinds of rows apart."""
    pairs = 0 if rows.parallel is None else int(rows.parallel.sum())
    return {"training_rows": len(rows), "labelled_rows": int((rows.labels >= 0).sum()), "paired_rows": pairs}


def _piece(rows: EncodedSplit, losses: LossSum) -> Hashable:
    """A key of what a feed collates: students whose feeds have the same one share their batches."""
    return id(rows), frozenset(losses.needs & {"nll", "parallel"})


def _weight(loss: LossSpec) -> str:
    weight = loss.weight
    return f"{weight:g}" if isinstance(weight, float) else f"({weight.start:g} to {weight.end:g}, {weight.shape})"

"""The sections `teachers` and `students`: everything that decides how a model is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from dtrain.errors import suggest
from dtrain.losses.class_weights import ClassWeights
from dtrain.recipe.adversarial import AdversarialSpec
from dtrain.recipe.answers import Answers, Reads, check_answers, reads_of
from dtrain.recipe.beside_labels import DomainAdversarySpec, ToleranceSpec
from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.initial import InitSpec, check_init
from dtrain.recipe.losses import LossSpec, choose_teachers, default_losses
from dtrain.recipe.models import PRETRAIN, EncoderSpec, ExternalSpec, ModelSpec, architectures
from dtrain.recipe.noisy import Noisy
from dtrain.recipe.optimizers import OptimizerSpec, ScheduleSpec
from dtrain.recipe.phases import (
    CORPUS,
    OWN,
    StudentPhase,
    check_last,
    check_lasting,
    check_names,
    check_read,
    resolve_phase,
)
from dtrain.recipe.sample import Sample
from dtrain.recipe.several import Baseline, Mixing, TermsOf, check_keys, resolve_baseline, resolve_tasks
from dtrain.recipe.taught import all_taught, check_rows, check_tokens
from dtrain.recipe.terms import check_terms, check_widths
from dtrain.recipe.values import (
    AT,
    OF_STUDENTS,
    PATTERN,
    TAUGHT,
    Closed,
    Distinct,
    NamedPath,
    Positive,
    Precision,
    Share,
    check_name,
)
from dtrain.tasks.rules import PLAIN_TEXT, rules_of, task_names


class TrainSpec(Closed):
    """What teachers and students share: how a model is trained."""

    name: str  # the name of the model and of its folder
    model: ModelSpec  # the kind of model, by its `type`, and its shape
    # which of `tasks` it is for; may be left out where there is one
    task: str | None = None
    # the side of a row that it reads, by its name in data.columns.text or a file's columns; only if rows have several
    reads: str | None = None
    # seed of initial weights, dropout and order of rows; default: the recipe's
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    epochs: PositiveInt = 3  # passes over the rows
    batch_size: PositiveInt | None = None  # rows per optimizer step over all ranks; default: 32
    batch_tokens: PositiveInt | None = None  # padded tokens per optimizer step over all ranks, in place of batch_size
    accumulation: PositiveInt = 1  # micro-batches of a rank in one step
    clip: Positive | None = 1.0  # largest norm of the gradient of all parameters; null: no clipping
    # recompute a transformer's layers in the backward pass: less memory, a third more computing
    activation_checkpointing: bool = False
    # number format of forward and backward pass; auto: the launcher's, else bf16 on GPUs that compute in it, else fp32
    precision: Precision = "auto"
    optimizer: OptimizerSpec = OptimizerSpec()  # the optimizer and its learning rates
    schedule: ScheduleSpec = ScheduleSpec()  # warm-up and decay of the learning rate
    evaluate_every: PositiveInt | None = None  # steps between two evaluations; default: an epoch
    # adversarial training on perturbed embeddings, beside the ordinary loss; null: none
    adversarial: AdversarialSpec | None = None
    # chooses the weights that are kept; the first is the default: accuracy, f1, f1_weighted or loss; for tagging f1,
    # f1_macro, f1_weighted, accuracy or loss; for regression pearson, spearman or loss; for multi_label f1, f1_macro,
    # f1_weighted, exact_match or loss; for seq2seq bleu, chrf, rouge_l or loss; of equal scores, the lower loss
    metric: str | None = None
    patience: PositiveInt | None = None  # evaluations without a better score after which training ends; null: never
    checkpoint_every: PositiveInt | None = None  # steps between two checkpoints; default: an epoch
    keep_checkpoints: PositiveInt = 2  # how many of the latest checkpoints are kept
    # lists of values by key path: one model for each combination
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    sample: Sample | None = None  # models with settings that are drawn, in place of a grid or beside it

    _name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def one_batch_size(self) -> TrainSpec:
        if self.batch_size and self.batch_tokens:
            raise ValueError("batch_size and batch_tokens exclude each other")
        if self.batch_tokens and self.optimizer.lr_scaling:
            raise ValueError("optimizer.lr_scaling: needs batch_size in place of batch_tokens")
        return self

    _same: str | None = PrivateAttr(None)  # the name of another tokenizer, which is identical

    @property
    def tokenizer(self) -> str:
        """The name of the tokenizer that it reads with: a transformer's has the model's name, other models share one.

        Transformers of a task that are given the same one, by a pretrained model or a vocabulary file, read with that of
        the first. For a student of several tasks it is that of the first task; see `parts` for others. If rows have
        several sides, the side is appended to the name: rows are encoded once for each tokenizer and side.
        """
        return self.vocabulary if self.reads is None else f"{self.vocabulary}{AT}{self.reads}"

    @property
    def vocabulary(self) -> str:
        """The tokenizer's name without the side; models with the same one read the same tokens, of any side."""
        return self._same or self.named_tokenizer

    @property
    def named_tokenizer(self) -> str:
        """The tokenizer's name without the side, as its section gives it, before identical ones are looked for."""
        if isinstance(self.model, ExternalSpec):
            return self.name
        encoder = self.model.transformer
        return OF_STUDENTS if encoder is None else encoder.tokenizer or self.name

    @property
    def given_tokenizer(self) -> tuple[object, ...] | None:
        """What identifies its own tokenizer, if that is given; see `EncoderSpec.given_tokenizer`."""
        encoder = self.model.transformer
        return None if encoder is None else encoder.given_tokenizer

    def read_with(self, tokenizer: str) -> None:
        """Read with the tokenizer of this name, which is identical to its own."""
        self._same = tokenizer

    @property
    def brings_tokenizer(self) -> bool:
        """Whether it has a tokenizer of its own, which others may read with."""
        encoder = self.model.transformer
        return isinstance(self.model, ExternalSpec) or encoder is not None and encoder.tokenizer is None

    def trained_on(self, tasks: list[str]) -> list[str]:
        """The tasks that it is for, of all that the recipe has; a single task need not be named."""
        return [self.task] if self.task in tasks else tasks[:1]

    def check_task(self, tasks: list[str], report: Reporter) -> None:
        """Report a task that the recipe does not have, or none where it has several."""
        allowed = f"(allowed: {', '.join(tasks)})"
        if self.model.several:
            report("model.type", f"{self.model.type!r} is for a student of several tasks, which names them in `tasks`")
        if self.task is None:
            if len(tasks) > 1:
                report("task", f"must say which of the recipe's tasks it is for {allowed}")
        elif not tasks:
            report("task", "is for a recipe with `tasks`; its only rows are those of `data`")
        elif self.task not in tasks:
            report("task", f"no task {self.task!r}{suggest(self.task, tasks)} {allowed}")

    def resolve(self, context: Context, report: Reporter) -> None:
        """Fill in what is left open, and check against the task."""
        task = context.task
        self.read_with(context.tokenizers.get(self.named_tokenizer, self.named_tokenizer))
        self.seed = context.seed if self.seed is None else self.seed
        if self.batch_size is None and self.batch_tokens is None:
            self.batch_size = 32
        self.metric = self.metric or task.metrics[0]
        if self.adversarial is not None and "adversarial" in task.excluded:
            report("adversarial", f"is not for task {context.data_task!r}")
        encoder = self.model.transformer
        if context.pretrained and encoder is not None and encoder.pretrained == PRETRAIN:
            encoder.take_from(context.pretrained)
        if encoder is not None and encoder.tokenizer and encoder.tokenizer not in context.transformers:
            hint = suggest(encoder.tokenizer, context.transformers)
            known = ", ".join(context.transformers) or "none"
            report(
                "model.tokenizer" if encoder is self.model else "model.encoder.tokenizer",
                f"no transformer of the recipe with a tokenizer of its own is called {encoder.tokenizer!r}{hint} "
                f"(there are: {known})",
            )
        if encoder is not None and encoder.init is not None:
            of_encoder = report.at("model") if encoder is self.model else report.at("model", "encoder")
            self.check_init(encoder, encoder.init, context, of_encoder)
        if isinstance(self.model, ExternalSpec):
            return  # data/external.py compares its folder with the data
        kind = self.model.type
        alike = {name for name in task_names() if rules_of(name).name == task.name}
        if kind not in task.models and alike.isdisjoint(self.model.tasks):
            types = (n for n, spec in architectures().items() if not alike.isdisjoint(spec.tasks) and not spec.several)
            inside = task.tags and encoder is self.model
            hint = f"; write {{type: tagger, encoder: {{type: {kind}, ...}}}}" if inside else ""
            allowed = ", ".join([*types, *task.models])
            report("model.type", f"{kind!r} is not for task {task.name!r} (allowed: {allowed}){hint}")
        elif kind not in task.models and context.data_task not in self.model.tasks:
            reads = ", ".join(name for name in self.model.tasks if name in alike)
            report(
                "model.type",
                f"{kind!r} reads {reads}, and {context.key}.task is {context.data_task!r}",
            )
        elif self.model.two_texts and not context.two_texts:
            report(
                "model.type", f"{kind!r} reads two texts a row, and {context.key}.columns.text_b names no second one"
            )
        self.check_metric(context, report)

    def check_metric(self, context: Context, report: Reporter) -> None:
        """Report a metric that is not for the task."""
        task = context.task
        assert self.metric is not None
        if self.metric not in task.metrics:
            allowed = ", ".join(task.metrics)
            hint = suggest(self.metric, task.metrics)
            report("metric", f"{self.metric!r} is not for task {task.name!r}{hint} (allowed: {allowed})")

    @property
    def given(self) -> bool:
        """Whether it is a teacher from a folder, used as it is."""
        return isinstance(self.model, ExternalSpec)

    def check_init(self, encoder: EncoderSpec, init: InitSpec, context: Context, report: Reporter) -> None:
        """Report why it cannot start from a teacher's weights; `report` is the reporter of the encoder's section."""
        report("init", "is for students: teachers are trained one after another, in no order of their own")


def _unless_given(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Refuse the type `given` in a recipe: only the key `from` makes such a model."""
    return value if isinstance(value, ExternalSpec) else validate(value)


class Teacher(TrainSpec):
    """A model trained on the labels, or taken as it is from a folder; its outputs become the knowledge."""

    model: Annotated[ModelSpec, WrapValidator(_unless_given)]
    # a model folder of another run, used as it is; only `name`, `task` and `reads` may be given beside it
    source: Annotated[NamedPath | None, Field(alias="from", exclude=True)] = None
    label_smoothing: Share = 0.0  # share of each label that is spread over all classes
    # weights of labels in the loss, such as {rare: 5.0}, else 1; balanced: n / (C n_c), by the rows of each label
    class_weights: ClassWeights = None
    tolerance: ToleranceSpec | None = None  # keep the largest logit near the next ones; null: off
    # for a teacher that reads annotations: the name of a tagger of the recipe, whose entities replace them in a second
    # evaluation and in `dtrain predict --privileged predicted`; left out: it is scored with the given ones only
    annotated_by: Annotated[str, Field(pattern=PATTERN)] | None = None
    # learn features that do not tell labelled rows from transfer rows, on which it is then also trained; null: off
    domain_adversary: DomainAdversarySpec | None = None
    # stop at the end of this epoch and keep its weights; the schedule is still that of all `epochs`
    stop_epoch: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def trained_or_given(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("from") is None:
            return value
        others = [key for key in value if key not in ("name", "from", "task", "reads")]
        if others:
            allowed = "(allowed: name, from, task, reads)"
            raise ValueError(f"{others[0]}: is not for a teacher taken `from` a folder as it is {allowed}")
        return {**value, "model": ExternalSpec(folder=str(value["from"]))}

    @model_serializer(mode="wrap")
    def as_it_was_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if self.source is None:
            return handler(self)
        beside = {key: value for key in ("task", "reads") if (value := getattr(self, key)) is not None}
        return {"name": self.name, "from": self.source, **beside}

    @model_validator(mode="after")
    def stops_within(self) -> Teacher:
        if self.stop_epoch is not None:
            if self.stop_epoch > self.epochs:
                raise ValueError(f"stop_epoch: {self.stop_epoch} is more than the {self.epochs} epochs")
            if self.patience or self.evaluate_every:
                raise ValueError("stop_epoch: not together with patience or evaluate_every, which choose by score")
        return self

    def resolve(self, context: Context, report: Reporter) -> None:
        super().resolve(context, report)
        if self.domain_adversary is not None:
            self.domain_adversary.check(context, report.at("domain_adversary"))
        for key in ("label_smoothing", "class_weights", "tolerance", "domain_adversary"):
            if key in context.task.excluded and self.source is None and getattr(self, key):
                report(key, f"is not for task {context.data_task!r}")


class Student(TrainSpec):
    """A model trained on labels and teachers' outputs; without teachers it is a from-scratch baseline."""

    # names or patterns of its teachers; default: all; []: none, a baseline
    teachers: list[Annotated[str, Field(pattern=PATTERN)]] | None = None
    # what it trains on; default: train, and transfer if there is some and it has teachers; for seq2seq also sequences,
    # which its teacher writes for all these rows, and interpolated, its candidates nearest the targets
    rows: Distinct[Literal["train", "transfer", "sequences", "interpolated"]] | None = None
    # the tasks of a student of several tasks, which has one encoder and a head for each
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    # for several tasks: how many batches of an epoch each of them has: proportional (default) to its own number of
    # batches, equal, or {temperature: T}, by the T-th root of that number
    mixing: Mixing | None = None
    # terms of a weighted sum; for several tasks, by task; default: labels and teachers in equal parts
    losses: TermsOf | None = None
    # for several tasks: the metric of each; their mean chooses the weights that are kept; default: as for one task
    metrics: dict[str, str] = {}
    # for several tasks: by task, what its metric is divided by in that mean: a number, or teachers of the task by name
    # or pattern, for its score on the validation rows (of several, their mean); left out: 1
    baseline: dict[str, Baseline] = {}
    # where outputs of its teachers come from; auto: from the store what a store can hold, and the rest from the
    # teacher, which runs beside the student; online: all from the teacher; stored: all from the store
    answers: Answers = "auto"
    noisy: Noisy | None = None  # a noisy student: choose transfer rows and blank tokens; null: off
    parallel: Literal["data"] | None = None  # data: all ranks train it together, as they do teachers; null: one rank
    # students with the same word here also learn from each other's outputs
    peers: Annotated[str, Field(pattern=PATTERN)] | None = None
    keep_epochs: bool = False  # keep the weights of each epoch beside the model, for the stage `points`
    # parts of its training, one after another, each with its own rows, losses and optimizer; left out: one, as above
    phases: Annotated[list[StudentPhase], Field(min_length=1)] | None = None

    _phase: StudentPhase | None = PrivateAttr(None)  # if it stands for a phase of another student, that phase
    _filled: bool = PrivateAttr(False)  # whether its phases have taken over what they left out

    @model_validator(mode="after")
    def phases_of_different_names(self) -> Student:
        check_names(self.phases or [])
        return self

    @model_serializer(mode="wrap")
    def without_what_its_phases_have(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        gone = set(OWN) - {"metric"} if self._filled else set()
        return {key: value for key, value in values.items() if key not in gone}

    @property
    def in_phase(self) -> bool:
        """Whether it stands for one phase of another student; parameters that no loss reaches are then frozen."""
        return self._phase is not None

    @property
    def trainings(self) -> list[Student]:
        """The trainings that make it, one after another: a student for each phase; itself if it has no phases."""
        return [self] if self.phases is None else [self._in_phase(number) for number in range(len(self.phases))]

    @property
    def all_epochs(self) -> int:
        """The epochs of all of its trainings."""
        return sum(training.epochs for training in self.trainings)

    def _in_phase(self, number: int) -> Student:
        assert self.phases is not None
        phase = self.phases[number]
        values = {"phases": None, **phase.settings(self)}
        if self.seed is not None:
            values["seed"] = (self.seed + number) % 2**31  # else phases would see the same batches and masks
        training = self.model_copy(update=values)
        training._phase, training._filled = phase, False
        if self._parts:
            training._parts = {task: self._parts[task]._named(phase.name) for task in phase.tasks or self._parts}
        return training

    def _named(self, phase: str) -> Student:
        """The training of the phase of this name."""
        return next(training for training in self.trainings if training._phase and training._phase.name == phase)

    _measures: dict[str, list[str]] = PrivateAttr({})
    _parts: dict[str, Student] = PrivateAttr({})  # for several tasks, by task, once it is resolved

    def trained_on(self, tasks: list[str]) -> list[str]:
        return super().trained_on(tasks) if self.tasks is None else self.tasks

    def check_task(self, tasks: list[str], report: Reporter) -> None:
        if self.tasks is None:
            super().check_task(tasks, report)
        check_keys(self, tasks, report)

    def resolve_tasks(self, contexts: dict[str, Context], report: Reporter) -> None:
        """Fill in what is left open, and check against each of its several tasks."""
        if not self._filled:
            check_read(self, report)
        self._measures = resolve_baseline(self, contexts, report)
        self._parts = resolve_tasks(self, contexts, report)
        if self.phases is not None and not report.problems:
            self._hand_over()

    @property
    def measures(self) -> dict[str, list[str]]:
        """By task, the names of the teachers whose scores are its baseline, if `baseline` names some."""
        return self._measures

    @property
    def parts(self) -> dict[str, Student]:
        """By task, the student of one task that stands for it; for a single task itself, by the empty name."""
        return self._parts or {"": self}

    @property
    def is_part(self) -> bool:
        """Whether it stands for a student of several tasks in one of them."""
        return self.model.several and self.tasks is None

    def of_task(self, task: str) -> Student:
        """The student of one task that stands for it; itself if it has one task."""
        return self._parts.get(task, self)

    @property
    def all_losses(self) -> list[LossSpec]:
        """The terms of the losses of all of its trainings and tasks."""
        return [loss for part in self.parts.values() for training in part.trainings for loss in training.losses or []]

    @property
    def taught_rows(self) -> list[str]:
        """Its rows, of all of its trainings and tasks, whose targets a teacher wrote."""
        rows = {name for part in self.parts.values() for training in part.trainings for name in training.rows or []}
        return [name for name in TAUGHT if name in rows]

    @property
    def exits(self) -> bool:
        """Whether its model has a classifier after several layers."""
        return self.model.early_exits

    def check_init(self, encoder: EncoderSpec, init: InitSpec, context: Context, report: Reporter) -> None:
        check_init(encoder, init, self.vocabulary, context, report)

    @property
    def asks(self) -> Reads:
        """The kinds of output that its losses read of each teacher, stored or computed beside it."""
        if self._parts:
            each = [part.asks for part in self._parts.values()]
            return Reads(
                {k: v for r in each for k, v in r.stored.items()}, {k: v for r in each for k, v in r.online.items()}
            )
        found = reads_of(self.all_losses, self.teachers or [], self.answers)
        for name in self.teachers or [] if self.noisy else ():  # their stored logits choose its rows
            found.stored.setdefault(name, [])
        for name in self.teachers or [] if self.taught_rows else ():
            found.stored[name] = sorted({*found.stored.get(name, []), "sequences"})
        if self._phase is not None:  # outputs that this phase does not read may be computed beside another phase
            found = Reads({name: kinds for name, kinds in found.stored.items() if kinds}, found.online)
        return found

    def resolve(self, context: Context, report: Reporter) -> None:
        if not self._filled and not self.is_part:
            check_read(self, report)
        super().resolve(context, report)
        if self.peers is not None and self.teachers is None:
            self.teachers = []
        self.teachers = choose_teachers(self.teachers, list(context.widths), context, report)
        if self.phases is None:
            self._resolve_training(context, report, report)
            return
        for key in ("peers", "noisy"):
            if getattr(self, key) is not None:
                report(key, "is not for a student with phases")
        for number, (phase, training) in enumerate(zip(self.phases, self.trainings, strict=True)):
            of_phase = report.at("phases", number, told=phase.name)
            training._resolve_training(context, of_phase, report)
            phase.fill(training)
        check_last(self.phases, report)
        check_lasting(self.phases, report)
        self._hand_over()

    def _hand_over(self) -> None:
        """Reset what its phases have taken over; its metric is that of the last phase, which chooses its weights."""
        assert self.phases is not None
        defaults = {key: type(self).model_fields[key].get_default(call_default_factory=True) for key in OWN}
        self.__dict__.update(defaults | {"metric": self.phases[-1].metric})
        self._filled = True

    def _resolve_training(self, context: Context, report: Reporter, of_student: Reporter) -> None:
        """Fill in and check rows and losses; `report` is the reporter of the section with these keys."""
        known = len(report.problems)
        assert self.teachers is not None
        on_plain_text = self.rows is not None and CORPUS in self.rows
        if self.losses is None:
            taught = bool(self.teachers) and not all_taught(self)
            plain = [LossSpec(type=PLAIN_TEXT.losses[0])]
            self.losses = plain if on_plain_text else default_losses(context, taught, self.exits)
        for loss in self.losses:
            loss.fill()
        if self.rows is None:
            with_transfer = self.teachers and context.transfer and not context.task.writes
            self.rows = ["train", "transfer"] if with_transfer else ["train"]
        check_rows(self, context, report)
        if "transfer" in self.rows and not context.transfer:
            report("rows", f"'transfer' needs {context.key}.transfer or {context.key}.augment")
        if self.noisy and ("noisy" in context.task.excluded or not self.teachers or "transfer" not in self.rows):
            report("noisy", "needs teachers, rows with transfer, and a task whose rows have one label each")
        if self.noisy and self.noisy.token_noise and self.adversarial:
            report(
                "adversarial", "not together with noisy.token_noise, by which its second pass would see other tokens"
            )
        if self._phase is not None:
            resolve_phase(self._phase, self, context, report)
        if on_plain_text:
            context = replace(context, task=PLAIN_TEXT)
        if len(report.problems) == known:
            check_terms(self, self.losses, self.teachers, context, report)
        if len(report.problems) == known:
            check_widths(self, self.losses, context, report)
            check_answers(self, self.losses, context, report, of_student)
            check_tokens(self, self.losses, context, report)

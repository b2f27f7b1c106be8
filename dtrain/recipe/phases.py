"""Phases of a student: parts of its training, one after another, each with its own rows, losses and optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from dtrain.losses import loss_names
from dtrain.recipe.corpus import MaskingSpec
from dtrain.recipe.losses import LossSpec, choose_teachers
from dtrain.recipe.optimizers import OptimizerSpec, ScheduleSpec
from dtrain.recipe.several import TermsOf
from dtrain.recipe.values import Closed, Distinct, Positive, check_name
from dtrain.tasks.rules import PLAIN_TEXT

if TYPE_CHECKING:
    from dtrain.recipe.context import Context, Reporter
    from dtrain.recipe.training import Student

NULLABLE = ("clip", "patience", "evaluate_every")  # null has a meaning here; left out, they are the student's
# Keys of a student that its phases have as well.
OWN = (
    *("rows", "losses", "epochs", "batch_size", "batch_tokens", "accumulation", "optimizer", "schedule", "metric"),
    *NULLABLE,
)
# Outputs of a model's head that losses ask for. A phase whose losses ask for none of them does not train the head, so
# that scores of the task say nothing of it.
OF_HEAD = frozenset({"token_logits", "logits", "exits", "emissions", "marginals", "nll"})

CORPUS = "corpus"
MASKED = frozenset({"vocabulary", "masked_labels", "masked_rows"})

Prefixes = list[Annotated[str, Field(min_length=1)]]


class StudentPhase(Closed):
    """A part of a student's training. Keys that it leaves out are taken from the student.

    A phase starts with a new optimizer and schedule from the weights that the phase before it kept. At most one of
    `train`, `freeze` and `up_to_layer` may be given. Parameters that no loss of the phase depends on are frozen in any
    case, and the weights of its losses, such as a regressor's, are always trained.
    """

    name: str  # names its curves, its checkpoints and its folder
    # for a student of several tasks: those that the phase trains; heads of the others stay as they are; left out: all
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    # what it trains on; corpus: plain text, of `corpus` or of `pretrain`, packed into rows, and no other rows beside
    # it; sequences and interpolated: as for a student
    rows: Distinct[Literal["train", "transfer", "corpus", "sequences", "interpolated"]] | None = None
    # tokens in a row of plain text; default: 128
    max_length: Annotated[int, Field(ge=8, le=512)] | None = None
    # which tokens of plain text are masked, if a loss asks for masks; default: as in `pretrain`, else 15 % of the
    # tokens
    masking: MaskingSpec | None = None
    losses: TermsOf | None = None  # terms of a weighted sum; for several tasks, by task
    epochs: PositiveInt | None = None  # passes over its rows
    batch_size: PositiveInt | None = None  # rows per optimizer step over all ranks
    batch_tokens: PositiveInt | None = None  # padded tokens per optimizer step over all ranks, in place of batch_size
    accumulation: PositiveInt | None = None  # micro-batches of a rank in one step
    clip: Positive | None = None  # largest norm of the gradient; null: no clipping, left out: the student's
    optimizer: OptimizerSpec | None = None  # the optimizer and its learning rates
    schedule: ScheduleSpec | None = None  # warm-up and decay of the learning rate over the phase
    evaluate_every: PositiveInt | None = None  # steps between two evaluations; null: an epoch, left out: the student's
    metric: str | None = None  # chooses the weights that are kept, if `keep` is best
    # evaluations without a better score after which the phase ends; null: never, left out: the student's
    patience: PositiveInt | None = None
    # weights that it ends with: the best by its metric, or the last; default: last if no loss reads the model's head,
    # else best
    keep: Literal["best", "last"] | None = None
    # train only parameters whose names begin with one of these prefixes; []: only the weights of its losses
    train: Prefixes | None = None
    # do not train parameters whose names begin with one of these prefixes
    freeze: Annotated[Prefixes, Field(min_length=1)] | None = None
    # train only the embeddings and this many layers, from the first, of a transformer; 0: only the embeddings
    up_to_layer: Annotated[int, Field(ge=0)] | None = None

    _name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def one_way_to_choose(self) -> StudentPhase:
        given = [key for key in ("train", "freeze", "up_to_layer") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[1]}: not together with {given[0]}")
        return self

    @model_validator(mode="after")
    def one_batch_size(self) -> StudentPhase:
        if self.batch_size and self.batch_tokens:
            raise ValueError("batch_size and batch_tokens exclude each other")
        return self

    @model_serializer(mode="wrap")
    def as_before_there_were_several(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `tasks` if it is not given, so that fingerprints of students of one task stay the same."""
        values: dict[str, Any] = handler(self)
        if self.tasks is None:
            values.pop("tasks", None)
        return values

    def gives(self, key: str) -> bool:
        """Whether it has a value of its own for a key of the student."""
        if key in NULLABLE:
            return key in self.model_fields_set
        if key in ("batch_size", "batch_tokens"):
            return bool(self.batch_size or self.batch_tokens)
        return getattr(self, key) is not None

    @property
    def on_plain_text(self) -> bool:
        """Whether its rows are plain text; valid once they are filled in."""
        return self.rows == [CORPUS]

    @property
    def terms(self) -> list[LossSpec]:
        """The terms of its losses, of all of its tasks."""
        losses: Any = self.losses or []
        return [term for terms in losses.values() for term in terms] if isinstance(losses, dict) else list(losses)

    @property
    def chooses(self) -> bool:
        """Whether it names parameters to be trained, or not to be."""
        return any(getattr(self, key) is not None for key in ("train", "freeze", "up_to_layer"))

    def settings(self, student: Student) -> dict[str, Any]:
        """The value of each key in `OWN`: its own, or that of `student` where it has none."""
        values = {key: getattr(self if self.gives(key) else student, key) for key in OWN}
        if isinstance(values["losses"], list):  # each phase chooses among the teachers by itself
            values["losses"] = [loss.model_copy(deep=True) for loss in values["losses"]]
        return values

    def fill(self, resolved: Student | StudentPhase) -> None:
        """Take over the settings of the student that stands for the phase, once they are filled in and checked."""
        for key in OWN:
            setattr(self, key, getattr(resolved, key))


def check_names(phases: list[StudentPhase]) -> None:
    """Raise ValueError where two phases have one name."""
    names = [phase.name for phase in phases]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"phases.{number}.name: {name!r} is already the name of phases.{names.index(name)}")


def check_read(student: Student, report: Reporter) -> None:
    """Report keys of a student that none of its phases reads, as each has its own."""
    for key in sorted(set(OWN) & student.model_fields_set - {"metric"}):  # students are also compared by it
        if student.phases and all(phase.gives(key) for phase in student.phases):
            if isinstance(student.losses, dict) and key == "losses":
                continue  # losses are by task, and a phase may leave out some of the tasks
            report(key, "is read by no phase, as each has its own; remove it here")


def check_last(phases: list[StudentPhase], report: Reporter) -> None:
    """Report a last phase that leaves the student without a trained head; `report` is the student's reporter."""
    if phases[-1].on_plain_text:
        last = f"the last phase is on {CORPUS}, and leaves a head that is not trained; add one on rows of the task"
        report(("phases", len(phases) - 1), last)


def check_lasting(phases: list[StudentPhase], report: Reporter) -> None:
    """Report losses that continue with weights of an earlier phase, but need others; `report` is the student's."""
    begun: dict[tuple[str, int], tuple[str, Any]] = {}
    for number, phase in enumerate(phases):
        lasting = [(place, loss) for place, loss in enumerate(phase.terms) if loss.loss.lasting]
        for nth, (place, loss) in enumerate(lasting):
            hidden = loss.parameters().get("hidden")
            first, before = begun.setdefault((loss.type, nth), (phase.name, hidden))
            if hidden != before:
                report.at("phases", number, told=phase.name).at("losses", place, told=loss.type)(
                    "hidden", f"{hidden}, but it goes on with the weights of phase {first!r}, where hidden is {before}"
                )


def resolve_phase(phase: StudentPhase, training: Student, context: Context, report: Reporter) -> None:
    """Fill in and check the keys of a phase that other trainings do not have.

    Args:
        training: the student that stands for the phase, with its losses filled in.
    """
    if CORPUS in (training.rows or []):
        _resolve_plain_text(phase, training, context, report)
    for key in ("max_length", "masking"):
        if training.rows != [CORPUS] and getattr(phase, key) is not None:
            report(key, f"is for a phase with rows: [{CORPUS}]")
    if training.batch_tokens and training.optimizer.lr_scaling:
        report("optimizer.lr_scaling", "needs batch_size in place of batch_tokens")
    if phase.metric is not None and training.rows != [CORPUS]:
        training.check_metric(context, report)
    if phase.keep is None:
        phase.keep = "best" if reads_head(training.losses or []) else "last"
    if phase.keep == "last" and training.patience is not None:
        if phase.patience is not None:
            report("patience", "is not for a phase that keeps its last weights, whatever their score")
        training.patience = None
    if phase.train == [] and not any(loss.loss.stateful for loss in training.losses or []):
        report("train", "[] trains the weights of losses alone, and none of these losses has some (imitation has)")
    encoder = training.model.transformer
    if phase.up_to_layer is not None and encoder is None:
        report("up_to_layer", f"a {training.model.type} has no layers of a transformer; name parameters with `train`")
    elif phase.up_to_layer is not None and encoder is not None and not encoder.pretrained:
        layers = encoder.shape()[1]
        if phase.up_to_layer > layers:
            report("up_to_layer", f"{phase.up_to_layer} is more than the {layers} layers of the model")


def _resolve_plain_text(phase: StudentPhase, training: Student, context: Context, report: Reporter) -> None:
    if training.rows != [CORPUS]:
        report("rows", f"{CORPUS!r} is text without labels, cut into rows of one length: it stands alone")
        return
    if not context.corpus:
        report("rows", f"{CORPUS!r} needs text: the section `corpus`, or `pretrain` with its corpus")
    if context.separate:
        report(
            "rows",
            "each token of a row of plain text attends to all others here, and pretrain.corpus.separate says otherwise; "
            "write a section `corpus` without it",
        )
    if training.model.transformer is None:
        report(
            "rows", f"{CORPUS!r} is for students that are transformers, and {training.name} is a {training.model.type}"
        )
    if training.adversarial is not None:
        report("rows", f"{CORPUS!r} is not together with `adversarial`")
    if phase.metric not in (None, "loss"):
        report("metric", f"is not for a phase on {CORPUS}, which ends with its last weights (allowed: loss)")
    if phase.keep == "best":
        report("keep", f"a phase on {CORPUS} ends with its last weights")
    for number, loss in enumerate(training.losses or []):
        of_loss = report.at("losses", number, told=loss.type)
        if PLAIN_TEXT.name not in loss.loss.tasks:
            allowed = ", ".join(loss_names(PLAIN_TEXT.name))
            of_loss("", f"is not for plain text, which has no labels (allowed: {allowed})")
        elif "teachers.vocabulary" in loss.loss.needs:
            for name in choose_teachers(loss.teachers, training.teachers or [], context, of_loss):
                encoder = context.teachers[name].model.transformer
                if encoder is None or not encoder.pretrained:
                    of_loss(
                        "teachers",
                        f"{name} starts from no pretrained model, whose scores over the vocabulary are compared",
                    )
    phase.keep, phase.max_length = "last", phase.max_length or 128
    training.metric = "loss"


def asks_for_masks(losses: list[LossSpec]) -> bool:
    """Whether some loss asks for masked positions of plain text."""
    return any(not MASKED.isdisjoint(loss.loss.needs) for loss in losses)


def reads_head(losses: list[LossSpec]) -> bool:
    """Whether some loss asks for what comes from the model's head."""
    return any(OF_HEAD & set(loss.loss.needs) for loss in losses)

"""Phases of a student: stretches of its training, one after another, each with its own rows, losses and optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dtrain.recipe.losses import LossSpec
from dtrain.recipe.optimizers import OptimizerSpec, ScheduleSpec
from dtrain.recipe.values import Closed, Positive, check_name

if TYPE_CHECKING:
    from dtrain.recipe.context import Context, Reporter
    from dtrain.recipe.training import Student

NULLABLE = ("clip", "patience", "evaluate_every")  # null has a meaning here; left out, they are the student's
# Keys of a student that its phases have, too.
OWN = (
    *("rows", "losses", "epochs", "batch_size", "batch_tokens", "accumulation", "optimizer", "schedule", "metric"),
    *NULLABLE,
)
# What a loss asks for that comes from a model's head. A phase without such a loss leaves the head as it is, and scores
# of the task say nothing of it.
OF_HEAD = frozenset({"logits", "exits", "emissions", "marginals", "nll"})

Prefixes = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class StudentPhase(Closed):
    """A stretch of a student's training. What it leaves out is taken from the student.

    A phase starts with a new optimizer and schedule from the weights that the phase before it kept. Of `train`, `freeze`
    and `up_to_layer` one at most may be given. Parameters that no loss of the phase depends on are frozen in any case,
    and the weights of its losses, such as a regressor's, are always trained.
    """

    name: str  # names its curves, its checkpoints and its folder
    rows: Annotated[list[Literal["train", "transfer"]], Field(min_length=1)] | None = None  # what it trains on
    losses: Annotated[list[LossSpec], Field(min_length=1)] | None = None  # terms of a weighted sum
    epochs: PositiveInt | None = None  # passes over its rows
    batch_size: PositiveInt | None = None  # rows per optimizer step over all ranks
    batch_tokens: PositiveInt | None = None  # padded tokens per optimizer step over all ranks, in place of batch_size
    accumulation: PositiveInt | None = None  # micro-batches of a rank in one step
    clip: Positive | None = None  # largest norm of the gradient; null: no clipping, left out: the student's
    optimizer: OptimizerSpec | None = None  # the optimizer with its rates
    schedule: ScheduleSpec | None = None  # how the rate rises and falls over the phase
    evaluate_every: PositiveInt | None = None  # steps between two evaluations; null: an epoch, left out: the student's
    metric: str | None = None  # chooses the weights that are kept, where those are the best
    # evaluations without a better score after which the phase ends; null: never, left out: the student's
    patience: PositiveInt | None = None
    # weights that it ends with: the best by its metric, or the last; default: last where no loss reads the model's head
    keep: Literal["best", "last"] | None = None
    train: Prefixes | None = None  # train only parameters whose names begin with one of these prefixes
    freeze: Prefixes | None = None  # do not train parameters whose names begin with one of these prefixes
    # train only the embeddings and the first so many layers of a transformer; 0: the embeddings alone
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

    def gives(self, key: str) -> bool:
        """Whether it has a value of its own for a key of the student."""
        if key in NULLABLE:
            return key in self.model_fields_set
        if key in ("batch_size", "batch_tokens"):
            return bool(self.batch_size or self.batch_tokens)
        return getattr(self, key) is not None

    @property
    def chooses(self) -> bool:
        """Whether it names parameters to be trained, or not to be."""
        return any(getattr(self, key) is not None for key in ("train", "freeze", "up_to_layer"))

    def settings(self, student: Student) -> dict[str, Any]:
        """By key of `OWN`, its own values and where it has none those of `student`."""
        values = {key: getattr(self if self.gives(key) else student, key) for key in OWN}
        if values["losses"] is not None:  # each phase chooses among the teachers by itself
            values["losses"] = [loss.model_copy(deep=True) for loss in values["losses"]]
        return values

    def fill(self, resolved: Student) -> None:
        """Take over the settings of the student that stands for it, once they are filled in and checked."""
        for key in OWN:
            setattr(self, key, getattr(resolved, key))


def resolve_phase(phase: StudentPhase, training: Student, context: Context, report: Reporter) -> None:
    """Fill in and check what a phase has beside the settings of any training.

    Args:
        training: the student that stands for the phase, with its losses filled in.
    """
    if training.batch_tokens and training.optimizer.lr_scaling:
        report("optimizer.lr_scaling", "needs batch_size in place of batch_tokens")
    if phase.metric is not None:
        training.check_metric(context, report)
    if phase.keep is None:
        phase.keep = "best" if reads_head(training.losses or []) else "last"
    if phase.keep == "last" and training.patience is not None:
        if phase.patience is not None:
            report("patience", "is not for a phase that keeps its last weights, whatever their score")
        training.patience = None
    encoder = training.model.transformer
    if phase.up_to_layer is not None and encoder is None:
        report("up_to_layer", f"a {training.model.type} has no layers of a transformer; name parameters with `train`")
    elif phase.up_to_layer is not None and encoder is not None and not encoder.pretrained:
        layers = encoder.shape()[1]
        if phase.up_to_layer > layers:
            report("up_to_layer", f"{phase.up_to_layer} is more than the {layers} layers of the model")


def reads_head(losses: list[LossSpec]) -> bool:
    """Whether some loss asks for what comes from the model's head."""
    return any(OF_HEAD & set(loss.loss.needs) for loss in losses)

"""Teachers and students: optimizers, schedules, losses, and what else decides a training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from dtrain.losses import coerce_parameters
from dtrain.losses.ramp import part_of_way
from dtrain.recipe.models import GivenSpec, ModelSpec
from dtrain.recipe.sample import Sample
from dtrain.recipe.values import (
    PATTERN,
    Closed,
    NonNegative,
    Positive,
    Precision,
    Probability,
    Share,
    check_name,
)


class AdversarialSpec(Closed):
    """Perturb the embeddings against the model in training: methods of Goodfellow 2014, Miyato 2017, Madry 2018.

    With `norm: relative`, `epsilon` and `step_size` are shares of the norm of the row's own embeddings: 0.1 moves a
    row by a tenth of its size, whatever the model and the length. With `norm: absolute` they are norms themselves.
    An epsilon or step_size without `norm` is absolute: so it was meant before there was a choice.
    """

    type: Literal["fgm", "fgsm", "pgd"]
    norm: Literal["relative", "absolute"] = "relative"
    epsilon: Positive = 0.1  # absolute: 1.0
    steps: PositiveInt = 3  # pgd only
    step_size: Positive = 0.03  # pgd only; absolute: 0.3
    weight: Positive = 1.0  # of the loss on the perturbed input, added to the plain one

    @model_validator(mode="after")
    def sizes_of_their_norm(self) -> AdversarialSpec:
        given = self.model_fields_set
        values: dict[str, Any] = {}
        if "norm" not in given and given & {"epsilon", "step_size"}:
            values["norm"] = "absolute"
        if values.get("norm", self.norm) == "absolute":
            values |= {key: size for key, size in (("epsilon", 1.0), ("step_size", 0.3)) if key not in given}
        self.__dict__.update(values)  # still not given: a grid may go on to name one of them
        return self


class OptimizerSpec(Closed):
    """`modules` gives parameters whose name starts with a prefix a rate of their own."""

    type: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive | None = None  # default: 1e-8, lamb 1e-6
    weight_decay: NonNegative = 0.01
    momentum: Probability = 0.9  # sgd only
    modules: dict[str, Positive] = {}
    lr_scaling: Literal["sqrt"] | None = None  # all rates x sqrt(batch_size / reference_batch), see training/optim.py
    reference_batch: PositiveInt | None = None  # the batch size that the rates are meant for

    @model_validator(mode="after")
    def scaled_from_a_batch(self) -> OptimizerSpec:
        if (self.lr_scaling is None) != (self.reference_batch is None):
            raise ValueError("lr_scaling and reference_batch: one needs the other")
        return self


class ScheduleSpec(Closed):
    """Warm-up (a share of all steps when under 1, else steps), then the named decay to `floor` x lr."""

    type: Literal["linear", "polynomial", "cosine", "constant", "exponential"] = "linear"
    warmup: NonNegative = 0.1
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # exponential only: the factor of each epoch on the last
    power: Positive = 1.0  # polynomial only: of the share of steps that are left
    floor: Probability = 0.0


class WeightSchedule(Closed):
    """A weight that goes from `start` to `end` over a share of training, and stays there."""

    start: NonNegative
    end: NonNegative = 0.0
    shape: Literal["linear", "cosine", "step"] = "linear"  # step: `start` to the last moment
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of all steps

    def at(self, progress: float) -> float:
        """The weight when the share `progress` of all steps is done."""
        return self.start + (self.end - self.start) * part_of_way(progress, self.until, self.shape)


Weight = Annotated[
    Annotated[NonNegative, Tag("float")] | Annotated[WeightSchedule, Tag("WeightSchedule")],
    Discriminator(lambda value: "WeightSchedule" if isinstance(value, dict | WeightSchedule) else "float"),
]


class Weighting(Closed):
    """How the teachers of one loss are weighed in a row (losses/weighting.py); the weights sum to 1."""

    type: Literal["average", "fixed", "confidence", "entropy", "gradient"]
    weights: dict[str, Positive] = {}  # fixed: of each teacher
    limit: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # gradient: the most that one teacher counts

    @model_validator(mode="before")
    @classmethod
    def just_a_type(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def only_what_it_reads(self) -> Weighting:
        if (self.type == "fixed") != bool(self.weights):
            raise ValueError("weights: a number for each teacher, for type 'fixed' and no other")
        if self.limit != 1.0 and self.type != "gradient":
            raise ValueError("limit: is only for type 'gradient'")
        return self


class LossSpec(BaseModel):
    """One term of a weighted sum; keys beyond these are the loss function's own parameters."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    type: str
    weight: Weight = 1.0
    weighting: Weighting | None = None  # of several teachers; default: the loss's own way with them
    teachers: Annotated[list[str], Field(min_length=1)] | None = None  # default: all of the student's

    @model_validator(mode="after")
    def known_loss(self) -> LossSpec:
        given = self.model_extra or {}
        checked = coerce_parameters(self.type, given)
        # No defaults yet: a grid may go on to give the term another type.
        self.__pydantic_extra__ = {name: checked[name] for name in given}
        return self

    def fill(self) -> None:
        """Give the loss's own parameters that the recipe leaves out their defaults."""
        self.__pydantic_extra__ = self.parameters()

    def parameters(self) -> dict[str, Any]:
        """All parameters of the loss, defaults included."""
        return coerce_parameters(self.type, self.model_extra or {})


class TrainSpec(Closed):
    """What teachers and students share: how a model is trained."""

    name: str
    model: ModelSpec
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # default: the recipe's
    epochs: PositiveInt = 3
    batch_size: PositiveInt | None = None  # rows per optimizer step over all ranks; default 32
    batch_tokens: PositiveInt | None = None  # or padded tokens per step over all ranks
    accumulation: PositiveInt = 1  # micro-batches a rank per step
    clip: Positive | None = 1.0  # global gradient norm
    activation_checkpointing: bool = False  # of a transformer's layers: less memory, a third more computing
    precision: Precision = "auto"
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    evaluate_every: PositiveInt | None = None  # steps; default: once an epoch
    adversarial: AdversarialSpec | None = None
    # Chooses the weights that are kept: default accuracy, tagging f1; of equal scores those of the lower loss.
    metric: Literal["accuracy", "f1", "f1_weighted", "f1_macro", "loss"] | None = None
    patience: PositiveInt | None = None  # evaluations without a better score
    checkpoint_every: PositiveInt | None = None  # steps; default: once an epoch
    keep_checkpoints: PositiveInt = 2  # the last ones
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    sample: Sample | None = None  # settings drawn at random, or after those that did well in earlier runs

    _name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def one_batch_size(self) -> TrainSpec:
        if self.batch_size and self.batch_tokens:
            raise ValueError("batch_size and batch_tokens exclude each other")
        if self.batch_tokens and self.optimizer.lr_scaling:
            raise ValueError("optimizer.lr_scaling: needs batch_size in place of batch_tokens")
        return self


class ToleranceSpec(Closed):
    """A teacher that does not put all of its belief into one class (`top_gap`, Yang et al. AAAI 2019)."""

    weight: Positive = 0.1  # of the gap between the largest logit and the mean of the next k - 1
    k: Annotated[int, Field(ge=2)] = 5


def _unless_given(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """A recipe cannot say `given`: only `from` makes one."""
    return value if isinstance(value, GivenSpec) else validate(value)


class Teacher(TrainSpec):
    """A model trained on the labels, or taken as it is from a folder; its outputs become the knowledge."""

    model: Annotated[ModelSpec, WrapValidator(_unless_given)]
    # A model folder of another run, taken as it is (data/given.py); then there is no key but this and the name.
    source: Annotated[str | None, Field(alias="from", exclude=True, min_length=1)] = None
    label_smoothing: Share = 0.0
    tolerance: ToleranceSpec | None = None
    stop_epoch: PositiveInt | None = None  # take the weights at this epoch's end, of a schedule over all `epochs`

    @model_validator(mode="before")
    @classmethod
    def trained_or_given(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("from") is None:
            return value
        others = [key for key in value if key not in ("name", "from")]
        if others:
            raise ValueError(f"{others[0]}: is not for a teacher taken `from` a folder as it is (allowed: name, from)")
        return {**value, "model": GivenSpec(folder=str(value["from"]))}

    @model_serializer(mode="wrap")
    def as_it_was_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return handler(self) if self.source is None else {"name": self.name, "from": self.source}

    @model_validator(mode="after")
    def stops_within(self) -> Teacher:
        if self.stop_epoch is not None:
            if self.stop_epoch > self.epochs:
                raise ValueError(f"stop_epoch: {self.stop_epoch} is more than the {self.epochs} epochs")
            if self.patience or self.evaluate_every:
                raise ValueError("stop_epoch: not together with patience or evaluate_every, which choose by score")
        return self


class Noisy(Closed):
    """A noisy student (augment/noisy.py, Xie et al. 2020); noise of the model itself is its `dropout`."""

    confidence: Share = 0.5  # the least that its teachers' mean must give to some class, for a transfer row to stay
    balance: bool = True  # as many transfer rows of each class that teachers see in them
    token_noise: Share = 0.1  # of tokens, blanked anew each time


class Student(TrainSpec):
    """A model trained on labels and teachers' outputs; without teachers it is a from-scratch baseline."""

    teachers: list[Annotated[str, Field(pattern=PATTERN)]] | None = None  # names or patterns; default all; [] none
    rows: Annotated[list[Literal["train", "transfer"]], Field(min_length=1)] | None = None
    losses: Annotated[list[LossSpec], Field(min_length=1)] | None = None
    noisy: Noisy | None = None
    parallel: Literal["data"] | None = None  # data: all ranks train it, as they do teachers; default: one rank
    # Students with the same word here learn from each other's answers as well (Zhang et al. 2018).
    peers: Annotated[str, Field(pattern=PATTERN)] | None = None

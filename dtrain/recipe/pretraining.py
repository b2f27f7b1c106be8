"""The section `pretrain`: masked language modelling on plain text, with next-sentence prediction where asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from dtrain.recipe.context import Reporter
from dtrain.recipe.corpus import CorpusSpec, MaskingSpec
from dtrain.recipe.models import PRETRAIN, EncoderModel
from dtrain.recipe.optimizers import OptimizerSpec, ScheduleSpec
from dtrain.recipe.training import TrainSpec
from dtrain.recipe.values import Closed, Positive, Precision


class Phase(Closed):
    """A phase of pre-training with rows of one length; each starts with a new optimizer."""

    max_length: Annotated[int, Field(ge=8, le=8192)] = 128  # tokens in a row; rows are packed until they are full
    epochs: PositiveInt = 1  # passes over the corpus
    batch_size: PositiveInt = 256  # rows per optimizer step over all ranks
    accumulation: PositiveInt = 1  # micro-batches of a rank in one step
    clip: Positive | None = 1.0  # largest norm of the gradient of all parameters; null: no clipping
    # default: LAMB with the rates of its paper, scaled by the square root of the batch size
    optimizer: OptimizerSpec = OptimizerSpec(type="lamb", lr=6.25e-4, lr_scaling="sqrt", reference_batch=512)
    # warm-up and decay of the learning rate over the phase
    schedule: ScheduleSpec = ScheduleSpec(type="polynomial", warmup=1 / 320)
    # steps between two measurements of the held-out perplexity; default: an epoch
    evaluate_every: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None  # steps between two checkpoints; default: an epoch


class Pretrain(Closed):
    """Masked language modelling on plain text; a teacher or student with `pretrained: pretrain` starts from the result."""

    model: EncoderModel  # the transformer to train; `pretrained` continues from a checkpoint
    corpus: CorpusSpec  # the text to learn from
    masking: MaskingSpec = MaskingSpec()  # which tokens are predicted
    next_sentence: bool = False  # rows are pairs of texts; predict also whether the second one follows the first
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # seed of weights, masks and order; default: the recipe's
    # number format of forward and backward pass; auto: bf16 on GPUs that compute in it, else fp32
    precision: Precision = "auto"
    # recompute the layers in the backward pass: less memory, a third more computing
    activation_checkpointing: bool = False
    # parts of the training, one after another, each with rows of one length
    phases: Annotated[list[Phase], Field(min_length=1)] = [Phase()]

    @model_validator(mode="after")
    def texts_of_a_pair_meet(self) -> Pretrain:
        if self.next_sentence and self.corpus.separate:
            raise ValueError(
                "next_sentence: not together with corpus.separate, which hides one text of a pair from the other"
            )
        return self

    def resolve(self, seed: int, report: Reporter) -> None:
        """Fill in the seed, and check that the model does not start from itself."""
        self.seed = seed if self.seed is None else self.seed
        if self.model.pretrained == PRETRAIN:
            report("model.pretrained", f"{PRETRAIN!r} is what this section makes; name another model, or leave it out")
        if self.model.init is not None:
            report("model.init", "is for students; `pretrained` continues from a checkpoint")

    def training(self, number: int) -> TrainSpec:
        """Phase `number` (from 0) as a specification for the training loop."""
        assert self.seed is not None
        phase = self.phases[number]
        return TrainSpec(
            name=f"phase-{number + 1}",
            model=self.model,
            seed=(self.seed + number) % 2**31,  # else phases of one length would see the same batches and masks
            precision=self.precision,
            activation_checkpointing=self.activation_checkpointing,
            metric="loss",
            **{name: getattr(phase, name) for name in Phase.model_fields if name != "max_length"},
        )

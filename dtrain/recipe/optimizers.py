"""Optimizers and schedules of learning rates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from dtrain.recipe.values import Closed, NonNegative, Positive, Probability, Share


class OptimizerSpec(Closed):
    """The optimizer. With `modules`, parameters whose names begin with a prefix have a learning rate of their own."""

    type: Literal["adamw", "lamb", "sgd"] = "adamw"  # AdamW, LAMB (You et al. 2019) for large batches, or SGD
    lr: Positive = 1e-3  # the learning rate after warm-up
    betas: tuple[Share, Share] = (0.9, 0.999)  # decay of the two moments (AdamW, LAMB)
    eps: Positive | None = None  # added to the root of the second moment; default: 1e-8, for LAMB 1e-6
    weight_decay: NonNegative = 0.01  # decoupled weight decay; none for biases, norms and other vectors
    momentum: Probability = 0.9  # momentum of SGD
    # learning rates of parameters whose names begin with a prefix, as {encoder: 5.0e-5, crf: 1.0e-2}
    modules: dict[str, Positive] = {}
    # sqrt: multiply all rates by sqrt(batch_size / reference_batch), and a warm-up that is a share of all steps by
    # batch_size / reference_batch
    lr_scaling: Literal["sqrt"] | None = None
    reference_batch: PositiveInt | None = None  # the batch size that the rates are meant for

    @model_validator(mode="after")
    def scaled_from_a_batch(self) -> OptimizerSpec:
        if (self.lr_scaling is None) != (self.reference_batch is None):
            raise ValueError("lr_scaling and reference_batch: one needs the other")
        return self


class ScheduleSpec(Closed):
    """Warm-up (a share of all steps when under 1, else steps), then the named decay to `floor` x lr."""

    # the shape of the decay after warm-up; constant: none
    type: Literal["linear", "polynomial", "cosine", "constant", "exponential"] = "linear"
    warmup: NonNegative = 0.1  # steps of linear rise: under 1 a share of all steps, else their number
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # for exponential: the rate's factor from epoch to epoch
    power: Positive = 1.0  # for polynomial: exponent of the share of steps that are left
    floor: Probability = 0.0  # share of the rate that is left at the end

"""A model of several tasks: an encoder that they share, and a head for each."""

from __future__ import annotations

from typing import ClassVar, Literal

from dtrain.recipe.architectures.taggers import CrfSpec
from dtrain.recipe.models import EMISSIONS, TEXT_TASKS, EncoderModel, register_architecture
from dtrain.recipe.values import Share


@register_architecture
class MultiTaskSpec(CrfSpec):
    """MT-DNN (Liu et al. 2019), BAM (Clark et al. 2019): one transformer and a small head for each task.

    The head of a task of texts is a linear layer over the pooled first token; that of a tagging task is a linear layer
    over the states of the characters, with a CRF. For a student with `tasks`.
    """

    type: Literal["multi_task"]
    module: ClassVar[str] = "dtrain.models.multi_task:MultiTask"
    graph: ClassVar[str | None] = EMISSIONS
    tasks: ClassVar[tuple[str, ...]] = (*TEXT_TASKS, "tagging")
    several: ClassVar[bool] = True
    encoder: EncoderModel  # the transformer that all tasks share, with its `type`
    dropout: Share = 0.1  # dropout before the heads

    @property
    def feature_width(self) -> int | None:
        return None if self.encoder.pretrained else self.encoder.shape()[0]

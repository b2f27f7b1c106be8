"""BERT and NEZHA, and the classifiers that are built on them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dtrain.recipe.models import LOGITS, TEXT_TASKS, Architecture, EncoderModel, EncoderSpec, register_architecture
from dtrain.recipe.values import Share, Size, Widths


@register_architecture
class BertSpec(EncoderSpec):
    """BERT (Devlin et al. 2018)."""

    type: Literal["bert"]
    tasks: ClassVar[tuple[str, ...]] = TEXT_TASKS


@register_architecture
class NezhaSpec(EncoderSpec):
    """NEZHA (Wei et al. 2019): BERT with relative positions, clipped at a largest distance."""

    type: Literal["nezha"]
    tasks: ClassVar[tuple[str, ...]] = TEXT_TASKS
    max_relative_position: Size = 64  # distance at which relative positions are clipped

    @property
    def extras(self) -> dict[str, Any]:
        return {"max_relative_position": self.max_relative_position}

    @model_validator(mode="after")
    def heads_have_pairs(self) -> Self:
        hidden, _, heads = self.shape()
        if not self.pretrained and hidden // heads % 2:
            raise ValueError(
                f"heads: {heads} heads of a hidden size of {hidden} have {hidden // heads} numbers each, and NEZHA's "
                "positions are pairs of a sine and a cosine: choose heads of an even size"
            )
        return self


@register_architecture
class BertCNNSpec(Architecture):
    """The convolutions of TextCNN over the last hidden states of a transformer."""

    type: Literal["bert_cnn"]
    module: ClassVar[str] = "dtrain.models.bert_cnn:BertCNN"
    graph: ClassVar[str | None] = LOGITS
    tasks: ClassVar[tuple[str, ...]] = TEXT_TASKS
    encoder: EncoderModel  # the transformer, with its `type`
    filters: Size = 256  # filters of each width
    widths: Widths = [2, 3, 4]  # widths of the filters in tokens, a convolution for each
    dropout: Share = 0.5  # dropout before the classifier

    @property
    def feature_width(self) -> int:
        return self.filters * len(self.widths)

    @property
    def multiply_adds(self) -> float:
        hidden = self.encoder.shape()[0]
        return self.encoder.multiply_adds + hidden * self.filters * sum(self.widths)


@register_architecture
class MultiExitSpec(Architecture):
    """A BERT with a classifier after several layers; at inference a row leaves at the first one that is confident."""

    type: Literal["multi_exit"]
    module: ClassVar[str] = "dtrain.models.multi_exit:MultiExit"
    graph: ClassVar[str | None] = "dtrain.export.graphs:Exits"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "pairs")
    early_exits: ClassVar[bool] = True
    encoder: BertSpec  # the BERT, with its `type`
    # layers that a classifier follows, counted from 1; the last layer always has one
    exits: Annotated[list[Annotated[int, Field(gt=0, le=1024)]], Field(min_length=1)]
    # probability of the best class from which on a row leaves; null: every row passes through all layers
    confidence: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    dropout: Share = 0.1  # dropout before the classifiers

    @model_validator(mode="after")
    def exits_are_layers(self) -> Self:
        layers = self.encoder.shape()[1]
        if not self.encoder.pretrained and max(self.exits) > layers:  # a pretrained one is checked when it is loaded
            raise ValueError(f"exits: {max(self.exits)} is more than the {layers} layers of the encoder")
        return self

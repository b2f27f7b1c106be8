"""The architectures of taggers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dtrain.recipe.models import EMISSIONS, Architecture, EncoderModel, recurrence, register_architecture
from dtrain.recipe.privileged import PrivilegedSpec
from dtrain.recipe.values import FilePath, Share, Size


class CrfSpec(Architecture):
    """The decision of a tagger: a linear-chain CRF over its emissions, or a softmax at each character."""

    crf: bool = True  # a CRF decides on whole sequences; false: a softmax at each character
    constrain: bool = False  # forbid transitions that no valid tag sequence has
    # of a student: the name of the teacher whose classifier (emissions and CRF) it starts from; left out: random
    classifier: Annotated[str, Field(min_length=1)] | None = None

    @property
    def classifier_of(self) -> str | None:
        return self.classifier

    @model_serializer(mode="wrap")
    def as_before_there_were_more_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys that are not given, so that fingerprints are the same as before these keys existed."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if v is not None or k not in ("classifier", "privileged")}

    @model_validator(mode="after")
    def constrains_paths(self) -> Self:
        if self.constrain and not self.crf:
            raise ValueError("constrain: needs crf: true")
        return self


@register_architecture
class TaggerSpec(CrfSpec):
    """Encoder (or character embedding) -> fusion of its layers -> BiLSTM -> emissions -> CRF."""

    type: Literal["tagger"]
    module: ClassVar[str] = "dtrain.models.tagger:Tagger"
    graph: ClassVar[str | None] = EMISSIONS
    tasks: ClassVar[tuple[str, ...]] = ("tagging",)
    encoder: EncoderModel | None = None  # a transformer, with its `type`; null: a table of character vectors
    embedding: Size = 128  # width of a character's vector, where there is no encoder
    # which layers of the encoder are read: the last, the last 4 side by side, or a learnt weighting of all
    fusion: Literal["last", "concat", "dynamic"] = "last"
    lstm: Size | None = 128  # width of the BiLSTM's states in each direction; null: no LSTM
    dropout: Share = 0.5  # dropout before the LSTM and before the classifier
    vectors: FilePath | None = None  # initial vectors of characters, where there is no encoder: a word2vec file
    # of a teacher: read the annotations of `data.columns.privileged` as well, as vectors beside those of the characters
    # that the LSTM reads; left out: read the text only
    privileged: PrivilegedSpec | None = None

    @model_validator(mode="after")
    def fits_encoder(self) -> TaggerSpec:
        if self.encoder is None and self.fusion != "last":
            raise ValueError(f"fusion: {self.fusion!r} needs an encoder")
        if self.encoder is not None and "embedding" in self.model_fields_set:
            raise ValueError("embedding: an encoder brings its own")
        if self.encoder is not None and self.vectors is not None:
            raise ValueError("vectors: an encoder brings its own")
        return self

    @model_serializer(mode="wrap")
    def without_embedding_beside_encoder(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `embedding` beside an encoder, so that the resolved recipe can be loaded again."""
        values: dict[str, Any] = super().as_before_there_were_more_keys(handler)
        return {k: v for k, v in values.items() if k != "embedding" or self.encoder is None}

    @property
    def reads_privileged(self) -> bool:
        return self.privileged is not None

    @property
    def token_width(self) -> int | None:
        if self.lstm:
            return 2 * self.lstm
        beside = self.privileged.size if self.privileged else 0
        if self.encoder is None:
            return self.embedding + beside
        if self.encoder.pretrained:
            return None  # only its folder tells
        return self.encoder.shape()[0] * (4 if self.fusion == "concat" else 1) + beside

    @property
    def multiply_adds(self) -> float:
        encoder = self.encoder
        below = self.embedding if encoder is None else encoder.shape()[0]
        below += self.privileged.size if self.privileged else 0
        own = recurrence(self.lstm, below) if self.lstm else 0.0
        return own + (0.0 if encoder is None else encoder.multiply_adds)


@register_architecture
class IdcnnSpec(CrfSpec):
    """Strubell et al. 2017: embedding -> the same block of dilated convolutions, several times -> emissions -> CRF."""

    type: Literal["idcnn"]
    module: ClassVar[str] = "dtrain.models.idcnn:IDCNN"
    graph: ClassVar[str | None] = EMISSIONS
    tasks: ClassVar[tuple[str, ...]] = ("tagging",)
    embedding: Size = 128  # width of a character's vector
    filters: Size = 128  # filters of each convolution
    width: Literal[3, 5, 7] = 3  # characters that a filter sees at once
    # dilation of each convolution of the block
    dilations: Annotated[list[Annotated[int, Field(gt=0, le=64)]], Field(min_length=1)] = [1, 1, 2]
    blocks: Size = 4  # how often the block is applied, with the same weights each time
    dropout: Share = 0.25  # dropout before each block and before the classifier
    vectors: FilePath | None = None  # initial vectors of characters: a word2vec file

    @property
    def token_width(self) -> int | None:
        return self.filters

    @property
    def multiply_adds(self) -> float:
        return self.filters**2 * self.width * len(self.dilations) * self.blocks

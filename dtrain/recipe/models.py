"""Sections `model`: the shapes of teachers and students."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer, model_validator

from dtrain.recipe.values import Closed, FilePath, Share, Size

# hidden size, layers, heads (Turc et al. 2019, 1908.08962, table 1; Devlin et al. for base and large)
ENCODER_SIZES = {
    "tiny": (128, 2, 2),
    "mini": (256, 4, 4),
    "small": (512, 4, 8),
    "medium": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


PRETRAIN = "pretrain"  # as `pretrained`: the model that the recipe's section of this name makes


class EncoderSpec(Closed):
    """A transformer: `pretrained` (a folder or a hub name), or from scratch by `size` or by explicit shape.

    In a recipe with a `pretrain` section, `pretrained: pretrain` is what that section makes.
    """

    _made_here: str | None = PrivateAttr(None)
    pretrained: FilePath | None = None
    size: Literal["tiny", "mini", "small", "medium", "base", "large"] = "mini"
    hidden: Size | None = None
    layers: Size | None = None
    heads: Size | None = None
    intermediate: Size | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    vocabulary: FilePath | None = None  # vocab.txt; else WordPiece is trained on the training text
    vocabulary_size: Annotated[int, Field(ge=100)] = 8000
    # another transformer of the recipe, by name: both read the same tokens, position by position
    tokenizer: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def scratch_or_pretrained(self) -> Self:
        if self.tokenizer and {"vocabulary", "vocabulary_size"} & self.model_fields_set:
            raise ValueError(f"tokenizer: {self.tokenizer!r} brings the vocabulary; leave out vocabulary and its size")
        shape = self.model_fields_set - {"type", "pretrained", "dropout"}
        if self.pretrained and shape:
            raise ValueError(f"pretrained and {min(shape)} exclude each other: a pretrained model brings its own")
        hidden, _, heads = self.shape()
        if not self.pretrained and hidden % heads:
            raise ValueError(f"heads: {heads} heads do not divide a hidden size of {hidden}")
        return self

    @model_serializer(mode="wrap")
    def without_shape_of_pretrained(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a pretrained model brings itself stays out of the resolved recipe, which is a recipe again."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if not self.pretrained or k in ("type", "pretrained", "dropout")}

    @property
    def source(self) -> str | None:
        """Where the pretrained model is: `pretrained`, or the run's own folder that it stands for."""
        return self._made_here or self.pretrained

    @property
    def made_here(self) -> bool:
        """Whether the recipe itself makes the pretrained model."""
        return self._made_here is not None

    def take_from(self, folder: str) -> None:
        """`pretrained: pretrain` is in `folder`."""
        self._made_here = folder

    def shape(self) -> tuple[int, int, int]:
        """Hidden size, layers and heads of a model from scratch."""
        hidden, layers, heads = ENCODER_SIZES[self.size]
        return self.hidden or hidden, self.layers or layers, self.heads or heads


class BertSpec(EncoderSpec):
    """BERT (Devlin et al. 2018)."""

    type: Literal["bert"]


class NezhaSpec(EncoderSpec):
    """NEZHA (Wei et al. 2019): BERT with relative positions, alike beyond a distance."""

    type: Literal["nezha"]
    max_relative_position: Size = 64

    @model_validator(mode="after")
    def heads_have_pairs(self) -> Self:
        hidden, _, heads = self.shape()
        if not self.pretrained and hidden // heads % 2:
            raise ValueError(
                f"heads: {heads} heads of a hidden size of {hidden} have {hidden // heads} numbers each, and NEZHA's "
                "positions are pairs of a sine and a cosine: choose heads of an even size"
            )
        return self


class BiLSTMSpec(Closed):
    """Embedding -> bidirectional LSTM -> tanh of the two final states (or pooled states) -> linear."""

    type: Literal["bilstm"]
    embedding: Size = 512
    hidden: Size = 512
    layers: Size = 1
    pooling: Literal["final", "max", "mean"] = "final"
    dropout: Share = 0.0
    vectors: FilePath | None = None  # a word2vec file (text, or binary: .bin) of width `embedding` to begin with


class SiameseSpec(Closed):
    """Of pairs: one BiLSTM reads both texts, u and v; [u; v; |u - v|; u * v] -> linear (Tang et al. 2019)."""

    type: Literal["siamese"]
    embedding: Size = 300
    hidden: Size = 256
    layers: Size = 1
    pooling: Literal["final", "max", "mean"] = "final"
    dropout: Share = 0.0
    vectors: FilePath | None = None


class TextRCNNSpec(Closed):
    """Lai et al. 2015: each word between its left and right contexts -> tanh -> max over time -> linear."""

    type: Literal["text_rcnn"]
    embedding: Size = 300
    hidden: Size = 256
    features: Size = 256
    dropout: Share = 0.5
    vectors: FilePath | None = None


class FastTextSpec(Closed):
    """Joulin et al. 2016: the mean of the vectors of tokens and of hashed n-grams -> linear."""

    type: Literal["fasttext"]
    embedding: Size = 256
    ngrams: Annotated[int, Field(ge=1, le=8)] = 3
    buckets: Annotated[int, Field(ge=16, le=2**24)] = 2**16
    dropout: Share = 0.5
    vectors: FilePath | None = None


Widths = Annotated[list[Annotated[int, Field(gt=0, le=512)]], Field(min_length=1)]


class TextCNNSpec(Closed):
    """Kim 2014: embedding -> convolutions of several widths -> max over time -> dropout -> linear."""

    type: Literal["textcnn"]
    embedding: Size = 300
    filters: Size = 256
    widths: Widths = [2, 3, 4]
    dropout: Share = 0.5
    vectors: FilePath | None = None


class BertCNNSpec(Closed):
    """A TextCNN's convolutions over the last states of a transformer."""

    type: Literal["bert_cnn"]
    encoder: Annotated[BertSpec | NezhaSpec, Field(discriminator="type")]
    filters: Size = 256
    widths: Widths = [2, 3, 4]
    dropout: Share = 0.5


class MultiExitSpec(Closed):
    """A BERT with a classifier after several layers; at inference a row leaves at the first that is sure of it."""

    type: Literal["multi_exit"]
    encoder: BertSpec
    exits: Annotated[list[Annotated[int, Field(gt=0, le=1024)]], Field(min_length=1)]  # layers; the last always is one
    confidence: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # null: every row goes all the way
    dropout: Share = 0.1

    @model_validator(mode="after")
    def exits_are_layers(self) -> Self:
        layers = self.encoder.shape()[1]
        if not self.encoder.pretrained and max(self.exits) > layers:  # a pretrained one is asked when it is loaded
            raise ValueError(f"exits: {max(self.exits)} is more than the {layers} layers of the encoder")
        return self


class CrfSpec(Closed):
    """The decision of a tagger: a linear-chain CRF over its emissions, or a softmax a character."""

    crf: bool = True
    constrain: bool = False  # transitions that no valid tag sequence has are impossible

    @model_validator(mode="after")
    def constrains_paths(self) -> Self:
        if self.constrain and not self.crf:
            raise ValueError("constrain: needs crf: true")
        return self


class TaggerSpec(CrfSpec):
    """Encoder (or character embedding) -> fusion of its layers -> BiLSTM -> emissions -> CRF."""

    type: Literal["tagger"]
    encoder: Annotated[BertSpec | NezhaSpec, Field(discriminator="type")] | None = None
    embedding: Size = 128  # of a character, where there is no encoder
    fusion: Literal["last", "concat", "dynamic"] = "last"  # concat: of the last 4 layers
    lstm: Size | None = 128  # a direction; null: none
    dropout: Share = 0.5
    vectors: FilePath | None = None  # of characters

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
        """The resolved recipe is a recipe again."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if k != "embedding" or self.encoder is None}


class IdcnnSpec(CrfSpec):
    """Strubell et al. 2017: embedding -> the same block of dilated convolutions, several times -> emissions -> CRF."""

    type: Literal["idcnn"]
    embedding: Size = 128
    filters: Size = 128
    width: Literal[3, 5, 7] = 3
    dilations: Annotated[list[Annotated[int, Field(gt=0, le=64)]], Field(min_length=1)] = [1, 1, 2]
    blocks: Size = 4
    dropout: Share = 0.25
    vectors: FilePath | None = None


ModelSpec = Annotated[
    BertSpec
    | NezhaSpec
    | BertCNNSpec
    | MultiExitSpec
    | BiLSTMSpec
    | TextCNNSpec
    | TextRCNNSpec
    | FastTextSpec
    | SiameseSpec
    | TaggerSpec
    | IdcnnSpec,
    Field(discriminator="type"),
]


def model_types() -> dict[str, type[BaseModel]]:
    """`model.type` names and their schema sections."""
    union = get_args(get_args(ModelSpec)[0])
    return {get_args(spec.model_fields["type"].annotation)[0]: spec for spec in union}


class GivenSpec(Closed):
    """What stands as `model` of a teacher with `from`: the folder knows its own structure. Not written in recipes."""

    type: Literal["given"] = "given"
    folder: FilePath


def feature_width(spec: BaseModel) -> int | None:
    """Length of a classifier's pooled vector; None where the recipe does not tell, as of pretrained models."""
    match spec:
        case TextCNNSpec() | BertCNNSpec():
            return spec.filters * len(spec.widths)
        case TextRCNNSpec():
            return spec.features
        case BiLSTMSpec():
            return 2 * spec.hidden
        case SiameseSpec():
            return 8 * spec.hidden
        case FastTextSpec():
            return spec.embedding
    encoder = encoder_of(spec)
    return None if encoder is None or encoder.pretrained else encoder.shape()[0]


def encoder_of(spec: BaseModel | None) -> BertSpec | NezhaSpec | None:
    """The transformer in a model section: the model itself, or its encoder; None for models without."""
    if isinstance(spec, TaggerSpec | BertCNNSpec | MultiExitSpec):
        return spec.encoder
    return spec if isinstance(spec, BertSpec | NezhaSpec) else None

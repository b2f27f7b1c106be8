"""Classifiers without a transformer: recurrent, convolutional, a bag of tokens."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dtrain.recipe.models import LOGITS, TEXT_TASKS, Architecture, recurrence, register_architecture
from dtrain.recipe.values import FilePath, Share, Size, Widths


@register_architecture
class BiLSTMSpec(Architecture):
    """Embedding -> bidirectional LSTM -> tanh of the two final states (or pooled states) -> linear."""

    type: Literal["bilstm"]
    module: ClassVar[str] = "dtrain.models.bilstm:BiLSTM"
    graph: ClassVar[str | None] = LOGITS
    tasks: ClassVar[tuple[str, ...]] = TEXT_TASKS
    stacked: ClassVar[bool] = True
    embedding: Size = 512  # width of a token's vector
    hidden: Size = 512  # width of the LSTM's states in each direction
    layers: Size = 1  # number of LSTM layers
    # what reaches the classifier: the two final states, or the maximum or mean over positions
    pooling: Literal["final", "max", "mean"] = "final"
    dropout: Share = 0.0  # dropout before the classifier
    vectors: FilePath | None = None  # initial embeddings: a word2vec file (.bin: binary) of width `embedding`

    @property
    def feature_width(self) -> int:
        return 2 * self.hidden

    @property
    def multiply_adds(self) -> float:
        return recurrence(self.hidden, self.embedding, self.layers)


@register_architecture
class TextCNNSpec(Architecture):
    """Kim 2014: embedding -> convolutions of several widths -> max over time -> dropout -> linear."""

    type: Literal["textcnn"]
    module: ClassVar[str] = "dtrain.models.textcnn:TextCNN"
    graph: ClassVar[str | None] = LOGITS
    tasks: ClassVar[tuple[str, ...]] = TEXT_TASKS
    stacked: ClassVar[bool] = True
    embedding: Size = 300  # width of a token's vector
    filters: Size = 256  # filters of each width
    widths: Widths = [2, 3, 4]  # widths of the filters in tokens, a convolution for each
    dropout: Share = 0.5  # dropout before the classifier
    vectors: FilePath | None = None  # initial embeddings: a word2vec file of width `embedding`

    @property
    def feature_width(self) -> int:
        return self.filters * len(self.widths)

    @property
    def multiply_adds(self) -> float:
        return self.embedding * self.filters * sum(self.widths)


@register_architecture
class TextRCNNSpec(Architecture):
    """Lai et al. 2015: each word between its left and right contexts -> tanh -> max over time -> linear."""

    type: Literal["text_rcnn"]
    module: ClassVar[str] = "dtrain.models.text_rcnn:TextRCNN"
    graph: ClassVar[str | None] = LOGITS
    tasks: ClassVar[tuple[str, ...]] = TEXT_TASKS
    embedding: Size = 300  # width of a token's vector
    hidden: Size = 256  # width of the contexts in each direction
    features: Size = 256  # width of the layer between contexts and classifier
    dropout: Share = 0.5  # dropout before the classifier
    vectors: FilePath | None = None  # initial embeddings: a word2vec file of width `embedding`

    @property
    def feature_width(self) -> int:
        return self.features

    @property
    def multiply_adds(self) -> float:
        combined = (self.embedding + 2 * self.hidden) * self.features
        return recurrence(self.hidden, self.embedding) + combined


@register_architecture
class FastTextSpec(Architecture):
    """Joulin et al. 2016: the mean of the vectors of tokens and of hashed n-grams -> linear."""

    type: Literal["fasttext"]
    module: ClassVar[str] = "dtrain.models.fasttext:FastText"
    graph: ClassVar[str | None] = LOGITS
    tasks: ClassVar[tuple[str, ...]] = TEXT_TASKS
    embedding: Size = 256  # width of the vectors of tokens and n-grams
    ngrams: Annotated[int, Field(ge=1, le=8)] = 3  # tokens in the longest n-gram; 1: single tokens only
    buckets: Annotated[int, Field(ge=16, le=2**24)] = 2**16  # rows of the table that n-grams are hashed into
    dropout: Share = 0.5  # dropout before the classifier
    vectors: FilePath | None = None  # initial embeddings: a word2vec file of width `embedding`

    @property
    def feature_width(self) -> int:
        return self.embedding

    @property
    def multiply_adds(self) -> float:
        return self.embedding * self.ngrams


@register_architecture
class SiameseSpec(Architecture):
    """For pairs: one BiLSTM encodes both texts as u and v; [u; v; |u - v|; u * v] -> linear (Tang et al. 2019)."""

    type: Literal["siamese"]
    module: ClassVar[str] = "dtrain.models.siamese:Siamese"
    graph: ClassVar[str | None] = LOGITS
    tasks: ClassVar[tuple[str, ...]] = ("pairs", "regression", "multi_label")
    two_texts: ClassVar[bool] = True
    embedding: Size = 300  # width of a token's vector
    hidden: Size = 256  # width of the LSTM's states in each direction
    layers: Size = 1  # number of LSTM layers
    # vector of a text: its two final states, or the maximum or mean over positions
    pooling: Literal["final", "max", "mean"] = "final"
    dropout: Share = 0.0  # dropout before the classifier
    vectors: FilePath | None = None  # initial embeddings: a word2vec file of width `embedding`

    @property
    def feature_width(self) -> int:
        return 8 * self.hidden

    @property
    def multiply_adds(self) -> float:
        return recurrence(self.hidden, self.embedding, self.layers)

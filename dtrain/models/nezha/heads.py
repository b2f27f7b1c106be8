"""NEZHA's heads: pre-training, masked tokens, next sentence, and the four usual tasks.

Each is called as the encoder is (`NezhaModel.forward`), with labels if a loss is wanted, and returns
transformers' own output for its task (a tuple with `return_dict=False`). Modules are named as in the
released checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from dtrain.models.nezha.configuration import NezhaConfig
from dtrain.models.nezha.layers import NezhaLMPrediction, NezhaPretrainingScores
from dtrain.models.nezha.modeling import NezhaModel, NezhaPreTrainedModel


@dataclass
class NezhaForPreTrainingOutput(ModelOutput):
    """Both pre-training scores, [B, L, vocabulary] and [B, 2]; the loss is the sum of their two means."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


TIED_WEIGHTS = {
    "cls.predictions.decoder.weight": "nezha.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class _NezhaWithVocabulary(NezhaPreTrainedModel):
    """The heads that score the vocabulary: their output matrix is the word embeddings."""

    _tied_weights_keys = TIED_WEIGHTS

    nezha: NezhaModel
    cls: NezhaPretrainingScores

    @property
    def _predictions(self) -> NezhaLMPrediction:
        return self.cls.predictions

    def get_output_embeddings(self) -> nn.Linear:
        """The projection on the vocabulary."""
        return self._predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the projection on the vocabulary, its bias included."""
        self._predictions.decoder = new_embeddings
        self._predictions.bias = new_embeddings.bias


class NezhaForPreTraining(_NezhaWithVocabulary):
    """Masked tokens and next sentence."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.cls = NezhaPretrainingScores(config, tokens=True, sentences=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> NezhaForPreTrainingOutput:
        """The loss needs both labels.

        Args:
            labels: int64 [B, L], -100 where no token is to be predicted.
            next_sentence_label: int64 [B], 0 where the second text follows the first and 1 where it does not.
        """
        encoded = self.nezha(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        tokens = self.cls.predictions(encoded.last_hidden_state)
        sentences = self.cls.seq_relationship(encoded.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = F.cross_entropy(tokens.flatten(0, 1), labels.flatten())
            loss = loss + F.cross_entropy(sentences, next_sentence_label.flatten())
        return NezhaForPreTrainingOutput(
            loss=loss,
            prediction_logits=tokens,
            seq_relationship_logits=sentences,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForMaskedLM(_NezhaWithVocabulary):
    """Masked tokens."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.cls = NezhaPretrainingScores(config, tokens=True, sentences=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MaskedLMOutput:
        """`labels` int64 [B, L], -100 where no token is to be predicted; logits [B, L, vocabulary]."""
        encoded = self.nezha(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.cls.predictions(encoded.last_hidden_state)
        return MaskedLMOutput(
            loss=None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForNextSentencePrediction(NezhaPreTrainedModel):
    """Whether the second text follows the first."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.cls = NezhaPretrainingScores(config, tokens=False, sentences=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> NextSentencePredictorOutput:
        """`labels` int64 [B], 0 where it follows and 1 where it does not; logits [B, 2]."""
        encoded = self.nezha(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.cls.seq_relationship(encoded.pooler_output)
        return NextSentencePredictorOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels.flatten()),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForSequenceClassification(NezhaPreTrainedModel):
    """One class, several, or a number for the whole text."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.nezha = NezhaModel(config)
        self.dropout = nn.Dropout(_head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Logits [B, labels].

        Args:
            labels: int64 [B] for cross-entropy, float [B] with one label for squared error, float [B, labels]
                for binary cross-entropy on each label. `config.problem_type` decides where it is set.
        """
        encoded = self.nezha(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(encoded.pooler_output))
        return SequenceClassifierOutput(
            loss=None if labels is None else _classification_loss(logits, labels, self.config.problem_type),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForMultipleChoice(NezhaPreTrainedModel):
    """Which of several texts fits."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.dropout = nn.Dropout(_head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MultipleChoiceModelOutput:
        """Inputs [B, choices, L] (embeddings [B, choices, L, H]), `labels` int64 [B]; logits [B, choices]."""
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        encoded = self.nezha(
            *(
                None if x is None else x.flatten(0, 1)
                for x in (input_ids, attention_mask, token_type_ids, inputs_embeds)
            ),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(encoded.pooler_output)).view(inputs.shape[:2])
        return MultipleChoiceModelOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForTokenClassification(NezhaPreTrainedModel):
    """One class a token."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_head_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> TokenClassifierOutput:
        """`labels` int64 [B, L], -100 where there is none; logits [B, L, labels]."""
        encoded = self.nezha(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        return TokenClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class NezhaForQuestionAnswering(NezhaPreTrainedModel):
    """The first and last token of an answer in the text."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ValueError(f"an answer has a start and an end: num_labels is {config.num_labels}, not 2")
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Positions int64 [B]; those past the end of the input count for nothing. Logits [B, L] each."""
        encoded = self.nezha(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        starts, ends = self.qa_outputs(encoded.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            outside = starts.size(1)
            loss = (
                F.cross_entropy(starts, start_positions.flatten().clamp(0, outside), ignore_index=outside)
                + F.cross_entropy(ends, end_positions.flatten().clamp(0, outside), ignore_index=outside)
            ) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=starts,
            end_logits=ends,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def _head_dropout(config: NezhaConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """transformers' rule: regression for one label, classes for whole numbers, else binary cross-entropy per label."""
    if problem_type is None:
        if logits.size(-1) == 1:
            problem_type = "regression"
        elif labels.is_floating_point():
            problem_type = "multi_label_classification"
        else:
            problem_type = "single_label_classification"
    if problem_type == "regression":
        return F.mse_loss(logits, labels.view_as(logits).to(logits.dtype))
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.flatten())
    return F.binary_cross_entropy_with_logits(logits, labels)

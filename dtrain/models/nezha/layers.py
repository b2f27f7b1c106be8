"""The parts of a NEZHA: embeddings, attention, feed-forward, the stack of layers, pooler, prediction heads.

Module names are those of the released checkpoints, which are BERT's. There is no position embedding:
positions enter in the attention, from one `RelativePositions` that the model builds and all layers share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from dtrain.models.nezha.attention import RelativePositions, eager_attention, relative_attention, relative_scores
from dtrain.models.nezha.configuration import NezhaConfig


class NezhaEmbeddings(nn.Module):
    """Word and token-type embeddings, normalised."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """int64 [B, L] or float [B, L, H], and int64 [B, L] or None for all 0 -> [B, L, H]."""
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        embeddings = inputs_embeds + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(embeddings))


class NezhaSelfAttention(nn.Module):
    """Multi-head attention with relative positions on keys and values."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.max_distance = config.max_relative_position
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, hidden_states: Tensor, positions: RelativePositions, keep: Tensor | None, eager: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[B, L, H] -> [B, L, H], and the attention weights [B, heads, L, L] if `eager`."""
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        dropout = self.dropout.p if self.training else 0.0
        weights = None
        if eager:
            output, weights = eager_attention(query, key, value, positions, keep, dropout)
        else:
            output = relative_attention(query, key, value, positions, keep, dropout)
        return output.transpose(1, 2).flatten(-2), weights

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """[B, heads, L, d] twice -> [B, heads, L, L]: the scores, relative term included, before mask and softmax."""
        positions = RelativePositions.build(
            query.size(2),
            head_size=self.head_size,
            max_distance=self.max_distance,
            device=query.device,
            dtype=query.dtype,
        )
        return relative_scores(query, key, positions)


class NezhaResidual(nn.Module):
    """Projection, dropout, sum with the input of the block, normalisation: how both halves of a layer end."""

    def __init__(self, width: int, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """[B, L, width] and [B, L, H] -> [B, L, H]."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class NezhaAttention(nn.Module):
    """Self-attention and its residual."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.self = NezhaSelfAttention(config)
        self.output = NezhaResidual(config.hidden_size, config)

    def forward(
        self, hidden_states: Tensor, positions: RelativePositions, keep: Tensor | None, eager: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `NezhaSelfAttention`."""
        attended, weights = self.self(hidden_states, positions, keep, eager)
        return self.output(attended, hidden_states), weights


class NezhaIntermediate(nn.Module):
    """The widening half of the feed-forward."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, intermediate]."""
        return self.intermediate_act_fn(self.dense(hidden_states))


class NezhaLayer(nn.Module):
    """One encoder layer.

    Gradient checkpointing is switched on by transformers, through the two attributes.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., tuple[Tensor, Tensor | None]]

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.attention = NezhaAttention(config)
        self.intermediate = NezhaIntermediate(config)
        self.output = NezhaResidual(config.intermediate_size, config)

    def forward(
        self, hidden_states: Tensor, positions: RelativePositions, keep: Tensor | None, eager: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `NezhaSelfAttention`."""
        if self.gradient_checkpointing and self.training:
            # Inside `forward` and not around the call: hooks (FSDP2's) then run once. Positional: the
            # re-entrant kind of checkpointing drops the gradients of keyword arguments.
            return self._gradient_checkpointing_func(self._run, hidden_states, positions, keep, eager)
        return self._run(hidden_states, positions, keep, eager)

    def _run(
        self, hidden_states: Tensor, positions: RelativePositions, keep: Tensor | None, eager: bool
    ) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(hidden_states, positions, keep, eager)
        return self.output(self.intermediate(attended), attended), weights


class NezhaEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(NezhaLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden_states: Tensor, positions: RelativePositions, keep: Tensor | None, eager: bool
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """The input and every layer's output, each [B, L, H], and every layer's attention weights."""
        states, weights = [hidden_states], []
        for layer in self.layer:
            state, weight = layer(states[-1], positions, keep, eager)
            states.append(state)
            weights.append(weight)
        return states, weights


class NezhaPooler(nn.Module):
    """The first token's state through a dense layer and tanh."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, H] -> [B, H]."""
        return torch.tanh(self.dense(hidden_states[:, 0]))


class NezhaPredictionTransform(nn.Module):
    """What comes before the vocabulary projection: dense, activation, normalisation."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, H]."""
        return self.LayerNorm(self.transform_act_fn(self.dense(hidden_states)))


class NezhaLMPrediction(nn.Module):
    """Scores over the vocabulary. `decoder.weight` is tied to the word embeddings, its bias to `bias`."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.transform = NezhaPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, vocabulary]."""
        return self.decoder(self.transform(hidden_states))


class NezhaPretrainingScores(nn.Module):
    """The module `cls` of a checkpoint: masked-token scores, next-sentence scores, or both."""

    def __init__(self, config: NezhaConfig, *, tokens: bool, sentences: bool) -> None:
        super().__init__()
        if tokens:
            self.predictions = NezhaLMPrediction(config)
        if sentences:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)

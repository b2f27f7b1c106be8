"""A siamese BiLSTM for pairs of texts, the student of Tang et al. 2019 (1903.12136) for sentence pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtrain.models.bilstm import padded_ids
from dtrain.models.output import ClassifierOutput
from dtrain.models.recurrent import POOLINGS, pooled, read_both_ways


class Siamese(nn.Module):
    """One BiLSTM reads both texts, u and v; [u; v; |u - v|; u * v] -> dropout -> linear.

    Args:
        vocab_size: number of token ids.
        classes: C.
        pad_token_id: its embedding is zero and stays so.
        separator_id: the token between the two texts; the first text ends before its first occurrence.
        embedding: size of a token's vector.
        hidden: size of the state of one direction.
        layers: number of layers of the LSTM.
        pooling: as for `BiLSTM`.
        dropout: on the features only.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        vocab_size: int,
        classes: int,
        pad_token_id: int,
        separator_id: int,
        embedding: int,
        hidden: int,
        layers: int,
        pooling: str,
        dropout: float,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: unknown {pooling!r} (allowed: {', '.join(POOLINGS)})")
        self.pooling = pooling
        self.pad_token_id, self.separator_id = pad_token_id, separator_id
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8 * hidden, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ClassifierOutput:
        """Classify pairs padded on the right; an empty text counts as one padding token.

        Args:
            input_ids: int64 [B, L], a separator between the texts; a row without one has an empty second text.
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: accepted so that all models are called alike; not used.
        """
        ids = padded_ids(input_ids, attention_mask, self.pad_token_id)
        ends = attention_mask.sum(1).long()
        places = torch.arange(ids.shape[1], device=ids.device)
        at_separator = (ids == self.separator_id) & (places < ends[:, None])
        first = torch.where(at_separator, places, ends[:, None]).amin(1)
        second = (ends - first - 1).clamp(min=0)

        embedded = self.embedding(ids)  # [B, L, E]: adversarial training perturbs this output row by row
        shifted = (places + first[:, None] + 1).clamp(max=ids.shape[1] - 1)
        behind = embedded.gather(1, shifted[..., None].expand_as(embedded))
        texts, lengths = torch.cat([embedded, behind]), torch.cat([first, second])
        texts = texts * (places < lengths[:, None])[..., None]  # padding is zero, like its embedding
        lengths = lengths.clamp(min=1)
        vectors = pooled(read_both_ways(self.lstm, texts, lengths), lengths, self.pooling)
        u, v = vectors[: ids.shape[0]], vectors[ids.shape[0] :]
        features = torch.cat([u, v, (u - v).abs(), u * v], dim=1)
        return ClassifierOutput(self.classifier(self.dropout(features)), features)

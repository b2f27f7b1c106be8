"""A bidirectional LSTM classifier, the student of Tang et al. 2019 (1903.12136) for single texts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from dtrain.models.output import ClassifierOutput
from dtrain.models.recurrent import POOLINGS, pooled, read_both_ways


class BiLSTM(nn.Module):
    """Embedding -> bidirectional LSTM -> pooling -> dropout -> linear.

    Args:
        vocab_size: number of token ids.
        classes: C.
        pad_token_id: its embedding is zero and stays so.
        embedding: size of a token's vector.
        hidden: size of the state of one direction.
        layers: number of layers of the LSTM.
        pooling: 'final' is tanh of the two final states of the last layer; 'max' and 'mean' are taken over tokens.
        dropout: on the features only.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        vocab_size: int,
        classes: int,
        pad_token_id: int,
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
        self.pad_token_id = pad_token_id
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * hidden, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ClassifierOutput:
        """Classify texts padded on the right; a text without tokens counts as one padding token.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: accepted so that all models are called alike; not used.
        """
        lengths = attention_mask.sum(1).clamp(min=1)
        ids = padded_ids(input_ids, attention_mask, self.pad_token_id)
        embedded = self.embedding(ids)  # [B, L, E]: adversarial training perturbs this output row by row
        features = pooled(read_both_ways(self.lstm, embedded, lengths), lengths, self.pooling)
        return ClassifierOutput(self.classifier(self.dropout(features)), features)


def padded_ids(input_ids: Tensor, attention_mask: Tensor, pad_token_id: int) -> Tensor:
    """The ids with the padding id at every position after a text's end: int64 [B, L], L at least 1."""
    ids = input_ids.masked_fill(attention_mask == 0, pad_token_id)
    return ids if ids.shape[1] else functional.pad(ids, (0, 1), value=pad_token_id)

"""TextRCNN (Lai et al., AAAI 2015): each word with all that is left and right of it, then the maximum over words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.models.bilstm import padded_ids
from dtrain.models.output import ClassifierOutput
from dtrain.models.recurrent import read_both_ways


class TextRCNN(nn.Module):
    """Embedding -> [left context; word; right context] -> linear, tanh (eq. 4) -> max over time -> dropout -> linear.

    The left context of a word is the state of a forward LSTM over the words *before* it, the right one that of a
    backward LSTM over the words after it (eq. 1 and 2, with LSTMs for the plain recurrences); at the ends they are 0.

    Args:
        vocab_size: number of token ids.
        classes: C.
        pad_token_id: its embedding is zero and stays so.
        embedding: size of a token's vector.
        hidden: size of a context.
        features: size of a word's combined vector, and of the text's.
        dropout: on the pooled features only.
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
        features: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pad_token_id = pad_token_id
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        self.combine = nn.Linear(embedding + 2 * hidden, features)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, classes)

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
        embedded = self.embedding(ids)
        before, after = read_both_ways(self.lstm, embedded, lengths).chunk(2, dim=-1)  # zeros beyond a text's end
        left = functional.pad(before, (0, 0, 1, 0))[:, :-1]
        right = functional.pad(after, (0, 0, 0, 1))[:, 1:]
        combined = self.combine(torch.cat([left, embedded, right], dim=-1)).tanh()
        beyond = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
        features = combined.masked_fill(beyond[..., None], -torch.inf).amax(1)
        return ClassifierOutput(self.classifier(self.dropout(features)), features)

"""BERT-CNN: the convolutions of a TextCNN over the last hidden states of a transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dtrain.models.output import ClassifierOutput
from dtrain.models.textcnn import max_over_time


class BertCNN(nn.Module):
    """Encoder -> a convolution for each width over its last states, relu, max over time -> dropout -> linear.

    Its features have the layout of those of a `TextCNN` with the same filters and widths, so that it can teach one by
    hints on features. Windows include [CLS] and [SEP], but no padding.

    Args:
        encoder: a transformer without head; called with ids and mask, gives `last_hidden_state` [B, L, H].
        vocab_size: not used, the encoder has its own.
        classes: C.
        pad_token_id: not used, likewise.
        filters: number of filters of each width.
        widths: widths of the filters in tokens, all different.
        dropout: on the pooled features only.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        encoder: nn.Module,
        vocab_size: int,
        classes: int,
        pad_token_id: int,
        filters: int,
        widths: list[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        hidden: int = encoder.config.hidden_size  # type: ignore[union-attr,assignment]
        self.widths = list(widths)
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden, filters, width) for width in self.widths)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(filters * len(self.widths), classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ClassifierOutput:
        """Classify texts padded on the right.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: int64 [B, L]; None for all 0.
        """
        states = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        # Positions after a text's end are zero, as in a TextCNN.
        states = torch.where(attention_mask[..., None] > 0, states, 0.0)
        features = max_over_time(self.convolutions, self.widths, states, attention_mask.sum(1))
        return ClassifierOutput(self.classifier(self.dropout(features)), features)

"""TextCNN (Kim 2014, 1408.5882)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.models.output import ClassifierOutput


class TextCNN(nn.Module):
    """Embedding -> a convolution for each width, relu, max over time -> dropout -> linear.

    A text of n tokens has max(1, n - w + 1) windows of width w: a text shorter than w is one window that ends
    in zeros. Windows that reach beyond that are left out, so padding changes nothing.

    Args:
        vocab_size: number of token ids.
        classes: C.
        pad_token_id: its embedding is zero and stays so.
        embedding: size of a token's vector.
        filters: number of filters of each width.
        widths: widths of the filters in tokens, all different.
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
        filters: int,
        widths: list[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.widths = list(widths)
        self.pad_token_id = pad_token_id
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=pad_token_id)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, filters, width) for width in self.widths)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(filters * len(self.widths), classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ClassifierOutput:
        """Classify texts padded on the right.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 1 for tokens and 0 for padding.
            token_type_ids: accepted so that all models are called alike; not used.
        """
        lengths = attention_mask.sum(1)
        # Padding embeds to zero, whatever ids stand there.
        ids = input_ids.masked_fill(attention_mask == 0, self.pad_token_id)
        features = max_over_time(self.convolutions, self.widths, self.embedding(ids), lengths)
        return ClassifierOutput(self.classifier(self.dropout(features)), features)


def max_over_time(convolutions: nn.ModuleList, widths: list[int], states: Tensor, lengths: Tensor) -> Tensor:
    """relu of the largest value of each filter over a text's windows, [B, filters x widths].

    Args:
        convolutions: one for each of `widths`.
        states: float [B, L, E], zeros after a text's end.
        lengths: int64 [B].
    """
    states = functional.pad(states, (0, 0, 0, max(0, max(widths) - states.shape[1]))).transpose(1, 2)
    pooled = []
    for width, convolution in zip(widths, convolutions, strict=True):
        windows = convolution(states)
        count = (lengths - width + 1).clamp(min=1)
        beyond = torch.arange(windows.shape[2], device=states.device) >= count[:, None]
        # relu is monotone, so it may follow the max: F numbers a row instead of F x L.
        pooled.append(windows.masked_fill(beyond[:, None], -torch.inf).amax(2).relu())
    return torch.cat(pooled, dim=1)

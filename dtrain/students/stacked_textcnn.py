"""K TextCNNs as one: windows of all members are gathered once, and each width is one batched product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dtrain.models.textcnn import TextCNN
from dtrain.students.stacked import dropout_each, embed_each, linear_each


def forward_textcnn(
    models: Sequence[TextCNN],
    weights: Mapping[str, Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    random: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """The outputs of K models of one shape for the same texts; see `TextCNN`.

    Args:
        models: give what they have in common, and their dropout rates.
        weights: by name, float [K, ...].
        input_ids: int64 [B, L].
        attention_mask: [B, L].
        random: the generator of each member's dropout.

    Returns:
        Logits [K, B, C] and features [K, B, F].
    """
    first = models[0]
    lengths = attention_mask.sum(1)
    ids = input_ids.masked_fill(attention_mask == 0, first.pad_token_id)
    short = max(first.widths) - ids.shape[1]
    if short > 0:
        ids = functional.pad(ids, (0, short), value=first.pad_token_id)
    embedded = embed_each(weights["embedding.weight"], ids)  # [K, B, L, E]
    members, rows, tokens, _ = embedded.shape
    pooled = []
    for number, width in enumerate(first.widths):
        count = tokens - width + 1
        windows = torch.cat([embedded[:, :, place : place + count] for place in range(width)], dim=-1)
        kernel = weights[f"convolutions.{number}.weight"]  # [K, F, E, width]
        kernel = kernel.permute(0, 1, 3, 2).flatten(2)
        answers = linear_each(windows.flatten(1, 2), kernel, weights[f"convolutions.{number}.bias"])
        answers = answers.view(members, rows, count, -1)
        real = (lengths - width + 1).clamp(min=1)
        beyond = torch.arange(count, device=ids.device) >= real[:, None]
        pooled.append(answers.masked_fill(beyond[:, :, None], -torch.inf).amax(2).relu())
    features = torch.cat(pooled, dim=2)
    dropped = dropout_each(features, [model.dropout.p for model in models], random)
    return linear_each(dropped, weights["classifier.weight"], weights["classifier.bias"]), features

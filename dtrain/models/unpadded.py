"""BERT classifiers without padding: a batch is one row of all its tokens, and attention is told where texts end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.errors import InputError
from dtrain.models.output import ClassifierOutput

# query, key, value [tokens, heads, size]; offsets of texts, int32 [B + 1]; longest text -> [tokens, heads, size]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


class UnpaddedBert(nn.Module):
    """Computes the same logits as `model`, with the same weights, for inference.

    Each call waits for the device once, for the number of tokens in the batch.
    """

    def __init__(self, model: Any, attention: Attention) -> None:
        super().__init__()
        self.bert: Any = model.bert
        self.classifier = model.classifier
        self.attention = attention

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ClassifierOutput:
        """Logits [B, C], and as features [B, H] the last layer's state of the first token.

        Args:
            input_ids: int64 [B, L], padded right.
            attention_mask: [B, L], 1 for tokens and 0 for padding; no text is empty.
            token_type_ids: int64 [B, L].
        """
        mask = attention_mask.bool()
        bounds = nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        states = self.bert.embeddings(
            input_ids=input_ids[mask][None],
            token_type_ids=None if token_type_ids is None else token_type_ids[mask][None],
            position_ids=positions[mask][None],
        )[0]
        for layer in self.bert.encoder.layer:
            attend = layer.attention.self
            query, key, value = (
                product(states).unflatten(-1, (attend.num_attention_heads, -1))
                for product in (attend.query, attend.key, attend.value)
            )
            context = self.attention(query, key, value, bounds, mask.shape[1]).flatten(1)
            states = layer.attention.output(context, states)
            states = layer.output(layer.intermediate(states), states)
        first = states[bounds[:-1].long()]
        return ClassifierOutput(self.classifier(self.bert.pooler(first[:, None])), first)


def check_unpadded(device: torch.device, precision: str, model_types: Iterable[str]) -> None:
    """Raise InputError for models other than BERT, an unfit device, float32, or a torch without such attention."""
    key = "knowledge.unpadded"
    if others := sorted(set(model_types) - {"bert"}):
        raise InputError(f"{key}: is for teachers of type bert (found: {', '.join(others)})")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(f"{key}: needs a GPU of compute capability 8.0 or more (found: {device.type})")
    if precision == "fp32":
        raise InputError(f"{key}: needs knowledge.precision bf16 or fp16 (found: fp32)")
    if find_spec("torch.nn.attention.varlen") is None:
        raise InputError(f"{key}: torch {torch.__version__} has no variable-length attention")


def unpadded(model: nn.Module) -> UnpaddedBert:
    """`model` with torch's variable-length flash attention; `check_unpadded` tells whether that can be used."""
    from torch.nn.attention.varlen import varlen_attn

    assert type(model).__name__ == "BertForSequenceClassification"

    def attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
        # One split: a text's answer then does not depend on what else is in the batch.
        found = varlen_attn(query, key, value, bounds, bounds, longest, longest, num_splits=1)
        return found  # type: ignore[return-value]

    return UnpaddedBert(model, attention)

"""K bidirectional LSTMs as one: in each layer one batched product for the inputs, and one for all states at each step.

Both directions of all members run in the same loop, the reverse one from the padded end: there its state stays zero
until a text's last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dtrain.models.bilstm import BiLSTM, padded_ids
from dtrain.students.stacked import dropout_each, embed_each, linear_each, rows_to_align


def forward_bilstm(
    models: Sequence[BiLSTM],
    weights: Mapping[str, Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    random: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """The outputs of K models of one shape for the same texts; see `BiLSTM`.

    Args:
        models: give what they have in common, and their dropout rates.
        weights: by name, float [K, ...].
        input_ids: int64 [B, L].
        attention_mask: [B, L].
        random: the generator of each member's dropout.

    Returns:
        Logits [K, B, C] and features [K, B, 2 x hidden].
    """
    first, rows = models[0], len(input_ids)
    more = rows_to_align(rows, first.lstm.hidden_size)  # rows without a token, whose outputs are dropped
    input_ids, attention_mask = (functional.pad(given, (0, 0, 0, more)) for given in (input_ids, attention_mask))
    lengths = attention_mask.sum(1).clamp(min=1)
    ids = padded_ids(input_ids, attention_mask, first.pad_token_id)
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # [B, L]
    states = embed_each(weights["embedding.weight"], ids)
    for layer in range(first.lstm.num_layers):
        states, final = _layer(states, real, weights, layer)
    if first.pooling == "final":
        features = final.tanh()
    elif first.pooling == "max":
        features = states.masked_fill(~real[:, :, None], -torch.inf).amax(2)
    else:
        features = states.masked_fill(~real[:, :, None], 0.0).sum(2) / lengths[:, None]
    features = features[:, :rows]
    dropped = dropout_each(features, [model.dropout.p for model in models], random)
    return linear_each(dropped, weights["classifier.weight"], weights["classifier.bias"]), features


def _layer(inputs: Tensor, real: Tensor, weights: Mapping[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """[K, B, L, I] -> the states [K, B, L, 2 H] of both directions and the final ones [K, B, 2 H]."""
    members, rows, tokens, _ = inputs.shape
    gates = []  # of both directions [K, B, L, 4 H], in the order of their time steps
    for direction in ("", "_reverse"):
        name = f"l{layer}{direction}"
        bias = weights[f"lstm.bias_ih_{name}"] + weights[f"lstm.bias_hh_{name}"]
        answer = linear_each(inputs.flatten(1, 2), weights[f"lstm.weight_ih_{name}"], bias)
        answer = answer.view(members, rows, tokens, -1)
        gates.append(answer.flip(2) if direction else answer)
    recurrent = torch.stack([weights[f"lstm.weight_hh_l{layer}{direction}"] for direction in ("", "_reverse")])
    recurrent = recurrent.flatten(0, 1).transpose(1, 2)  # [2 K, H, 4 H]
    half = _half_of(recurrent)
    steps = torch.stack(gates).flatten(0, 1).unbind(2)
    alive = torch.stack([real, real.flip(1)])[:, None].expand(2, members, rows, tokens).flatten(0, 1).unbind(2)

    hidden = torch.zeros(2 * members, rows, recurrent.shape[1], device=real.device)
    cell = torch.zeros_like(hidden)
    walked = []
    for step, here in zip(steps, alive, strict=True):
        # Under autocast the product alone is in half precision; states are summed up in float32.
        factor = recurrent if half is None else _Rounded.apply(recurrent, half)
        i, f, g, o = torch.baddbmm(step, hidden, factor).float().chunk(4, dim=-1)
        new_cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        new_hidden = o.sigmoid() * new_cell.tanh()
        here = here[:, :, None]
        cell = torch.where(here, new_cell, cell)
        hidden = torch.where(here, new_hidden, hidden)
        walked.append(hidden)
    forward, backward = torch.stack(walked, dim=2).unflatten(0, (2, members))
    final = torch.cat(list(hidden.unflatten(0, (2, members))), dim=-1)
    return torch.cat([forward, backward.flip(2)], dim=-1), final


def _half_of(weight: Tensor) -> Tensor | None:
    """`weight` in the type of autocast's products; None outside of autocast."""
    device = weight.device.type
    return weight.detach().to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


class _Rounded(torch.autograd.Function):
    """A weight in half precision that was rounded once for all time steps, whose gradients are added in float32."""

    @staticmethod
    def forward(context: Any, weight: Tensor, half: Tensor) -> Tensor:
        return half.view_as(half)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].float(), None

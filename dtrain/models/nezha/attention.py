"""Self-attention with fixed relative positions on keys and values (NEZHA), in four exact forms.

With `R[m]` the sinusoid of relative position `m - M` and `clip(x) = min(max(x, -M), M)` (arXiv 1909.00204,
eq. 2 to 5):

    e_ij = q_i . (k_j + R[clip(j - i) + M]) / sqrt(d)
    o_i = sum_j softmax(e)_ij (v_j + R[clip(j - i) + M])

- `eager_attention`: the formula as it stands, with the probabilities as a result. The reference of the tests.
- `doubled_head_attention`: one fused call, for lengths up to M + 1.
- `turned_attention`: the same identity in plain products, which a CPU does faster.
- `banded.banded_attention`: any length.

None holds a [length, length, head] tensor; `RelativePositions` is O(length * head) and serves every layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dtrain.models.nezha.banded import banded_attention


@dataclass(frozen=True)
class RelativePositions:
    """The positions as attention needs them, computed once per forward pass and shared by all layers.

    Where no two tokens are more than M apart the clipping does nothing, and by the angle-sum formulas

        x . R[j - i + M] = turn(x, (M - i) w) . sinusoid(j w)

    with `w` the frequencies and `turn` the rotation of each (sine, cosine) pair.

    Attributes:
        table: [2M + 1, d], the sinusoids of distances -M to M; `table[:, 2k]` is the sine at frequency k.
        sinusoids: [L, d], those of the key positions 0 to L - 1.
        turns: [L, d / 2] complex, the rotation of query i by (M - i) w.
    """

    table: Tensor
    sinusoids: Tensor
    turns: Tensor

    @classmethod
    def build(
        cls, length: int, *, head_size: int, max_distance: int, device: torch.device, dtype: torch.dtype
    ) -> RelativePositions:
        """The positions for inputs of `length`, in float64 if `dtype` is and in float32 otherwise.

        Angles are taken in float64: at distance 128 a float32 angle is off by 1e-5 already.
        """
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        places = torch.arange(length, device=device, dtype=torch.float64)
        table_places = torch.arange(2 * max_distance + 1, device=device, dtype=torch.float64)
        exponents = torch.arange(0, head_size, 2, device=device, dtype=torch.float64) / head_size
        frequencies = 10000.0**-exponents
        turns = torch.outer(max_distance - places, frequencies)
        return cls(
            table=_sinusoids(table_places, frequencies).to(kept),
            sinusoids=_sinusoids(places, frequencies).to(kept),
            turns=torch.polar(torch.ones_like(turns), turns).to(kept.to_complex()),
        )

    @property
    def max_distance(self) -> int:
        """M, the distance at which relative positions are clipped."""
        return self.table.size(0) // 2

    @property
    def unclipped(self) -> bool:
        """Whether every pair of tokens is within M of each other."""
        return self.sinusoids.size(0) <= self.max_distance + 1


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: RelativePositions,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The fastest exact form for this device and length.

    Args:
        query, key, value: [B, heads, L, d], of one floating dtype.
        positions: built for length L.
        keep: bool, [B, 1, 1 or L, L], true where a key may be seen; None where all may. For a query that may
            see no key, the output is finite and otherwise arbitrary.
        dropout: probability with which an attention weight is dropped.

    Returns:
        [B, heads, L, d].
    """
    if not positions.unclipped:
        return banded_attention(query, key, value, positions.table.to(query.dtype), keep, dropout)
    if query.device.type == "cpu":
        return turned_attention(query, key, value, positions, keep, dropout)
    return doubled_head_attention(query, key, value, positions, keep, dropout)


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: RelativePositions,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The formula at the head of this file, any length. Arguments as in `relative_attention`.

    Returns:
        the output [B, heads, L, d] and the attention weights after dropout [B, heads, L, L].
    """
    table = positions.table.to(query.dtype)
    distances = _distances(query, positions)
    scores = relative_scores(query, key, positions)
    if keep is not None:
        scores = scores + additive_mask(keep, scores.dtype)
    weights = F.dropout(scores.softmax(-1), dropout)
    weight_by_distance = query.new_zeros(*query.shape[:3], len(table)).scatter_add(-1, distances, weights)
    return weights @ value + weight_by_distance @ table, weights


def relative_scores(query: Tensor, key: Tensor, positions: RelativePositions) -> Tensor:
    """e_ij of the formula at the head of this file, [B, heads, L, L], any length, before mask and softmax."""
    by_distance = query @ positions.table.to(query.dtype).T  # q_i . R[m] for each of the 2M + 1 distances
    relative = by_distance.gather(-1, _distances(query, positions))
    return (query @ key.transpose(-1, -2) + relative) / math.sqrt(query.size(-1))


def _distances(query: Tensor, positions: RelativePositions) -> Tensor:
    """clip(j - i) + M for query i and key j, int64 [B, heads, L, L]."""
    places, reach = torch.arange(query.size(2), device=query.device), positions.max_distance
    distances = (places[None, :] - places[:, None]).clamp(-reach, reach) + reach
    return distances.expand(*query.shape[:2], -1, -1)


def doubled_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: RelativePositions,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Ordinary attention with heads of 2d, by whichever fused kernel the device has; L <= M + 1.

    Keys and values are concatenated with their sinusoids, queries with themselves turned; the second half of the
    output is turned back. Arguments and result as in `relative_attention`.
    """
    size = query.size(-1)
    sinusoids = positions.sinusoids.to(query.dtype).expand_as(key)
    output = F.scaled_dot_product_attention(
        torch.cat([query, _turn(query, positions.turns)], -1),
        torch.cat([key, sinusoids], -1),
        torch.cat([value, sinusoids], -1),
        attn_mask=None if keep is None else additive_mask(keep, query.dtype),
        dropout_p=dropout,
        scale=1 / math.sqrt(size),
    )
    return output[..., :size] + _turn(output[..., size:], positions.turns.conj())


def turned_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: RelativePositions,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The identity of `doubled_head_attention` without building the doubled heads; L <= M + 1.

    The sinusoids are the same for every head, so their products are single large ones. On one CPU thread,
    192 heads: 2.9 ms against 3.2 (length 32), 9.1 against 9.2 (64); with the backward 6.9 against 10.7, 21
    against 26.
    """
    query = query / math.sqrt(query.size(-1))
    sinusoids = positions.sinusoids.to(query.dtype)
    scores = query @ key.transpose(-1, -2) + _turn(query, positions.turns) @ sinusoids.T
    if keep is not None:
        scores = scores + additive_mask(keep, scores.dtype)
    weights = F.dropout(scores.softmax(-1), dropout)
    return weights @ value + _turn(weights @ sinusoids, positions.turns.conj())


def additive_mask(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `keep` is true, half of the dtype's lowest number elsewhere.

    Half, because a score added to the lowest float16 gives -inf, and a row of -inf gives NaN.
    """
    return torch.zeros_like(keep, dtype=dtype).masked_fill_(~keep, torch.finfo(dtype).min / 2)


def _sinusoids(places: Tensor, frequencies: Tensor) -> Tensor:
    """[n] and [d / 2] -> [n, d], sines and cosines in turn (eq. 4-5)."""
    angles = torch.outer(places, frequencies)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """Each (sine, cosine) pair of x [..., L, d] as one complex number, times turns [L, d / 2]; dtype of x.

    As complex numbers it is one pass over memory, measured 6 times as fast as the four real products.
    """
    pairs = x.to(turns.real.dtype).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2).to(x.dtype)

"""Relative attention for any length: forward and backward written by hand over blocks of queries.

Of the scores of one query only the 2M + 1 within the band |j - i| <= M have positions of their own; all
keys to the left of it share R[0], all to the right R[2M]. So q_i . R costs 2M + 1 products a query and not
L, and is added along a diagonal view of the scores; on the value side the same view of the weights meets R
in one product.

The backward pass uses the operations of the forward pass with other arguments: the gradient of the weights is
`g_i . (v_j + R)`, again `_Block.products`, and that of the query `sum_j ds_ij (k_j + R)`, again `_Block.mix`.
Long inputs keep only the dropout mask between forward and backward, and compute the weights again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Queries a block. On CPU 32 and 128 measured within 10% of 64, 256 up to 25% slower. An accelerator pays for
# each kernel launch instead, so it gets few large blocks.
ROWS_ON_CPU = 64
ROWS_ON_ACCELERATOR = 512

# Up to this length a layer keeps its weights for the backward, which is 15 to 20% faster (96 heads of length 128:
# 39 ms against 45) and still less memory than its other activations.
KEEP_WEIGHTS_UP_TO = 256


def banded_attention(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, keep: Tensor | None, dropout: float
) -> Tensor:
    """Attention with clipped relative positions, any length, differentiable once.

    Args:
        query, key, value: [B, heads, L, d].
        table: [2M + 1, d] of the same dtype, not differentiated.
        keep: bool [B, 1, 1 or L, L] or None.
        dropout: probability with which a weight is dropped.

    Returns:
        [B, heads, L, d].
    """
    return _BandedAttention.apply(query, key, value, table, keep, dropout)


@dataclass(frozen=True)
class _Block:
    """Queries [start, stop) against all keys, in a buffer with room for every query's whole band.

    The buffer is [N, rows, before + length + after]. The band of query `start + r` begins in column `band + r`, so
    in a view whose row stride is one more than the buffer's width the bands are aligned below each other.
    """

    start: int
    stop: int
    length: int
    reach: int  # M

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def before(self) -> int:
        return max(0, self.reach - self.start)

    @property
    def after(self) -> int:
        return max(0, self.stop + self.reach - self.length)

    @property
    def width(self) -> int:
        return self.before + self.length + self.after

    @property
    def band(self) -> int:
        return self.start - self.reach + self.before

    def keys(self, buffer: Tensor) -> Tensor:
        """The columns that are keys, [N, rows, length]."""
        return buffer[..., self.before : self.before + self.length]

    def bands(self, buffer: Tensor) -> Tensor:
        """The bands straightened, a view [N, rows, 2M + 1] of a contiguous buffer."""
        return buffer.as_strided(
            (buffer.size(0), self.rows, 2 * self.reach + 1),
            (self.rows * self.width, self.width + 1, 1),
            buffer.storage_offset() + self.band,
        )

    def far(self, buffer: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For either side with keys out of reach: its row of the table, the columns that are out of reach for
        all queries of the block, and the [rows, rows] corner of which a triangle is out of reach."""
        if self.stop - 1 > self.reach:
            yield 0, buffer[..., : self.band], buffer[..., self.band : self.band + self.rows]
        if self.start + self.reach < self.length - 1:
            last = self.band + 2 * self.reach
            yield -1, buffer[..., last + self.rows :], buffer[..., last : last + self.rows]

    def triangle(self, side: int, like: Tensor) -> Tensor:
        """[rows, rows], 1 where a corner is out of reach."""
        ones = like.new_ones(self.rows, self.rows)
        return ones.tril_(-1) if side == 0 else ones.triu_(1)

    def products(self, x: Tensor, y: Tensor, table: Tensor) -> Tensor:
        """`x_i . (y_j + R[clip(j - i) + M])` for x [N, rows, d] and y [N, length, d], in a new buffer.

        The columns that are no keys hold finite numbers without meaning.
        """
        buffer = x.new_empty(x.size(0), self.rows, self.width)
        buffer[..., : self.before] = 0
        buffer[..., self.before + self.length :] = 0
        torch.bmm(x, y.transpose(1, 2), out=self.keys(buffer))
        by_distance = x @ table.T
        self.bands(buffer).add_(by_distance)
        for side, columns, corner in self.far(buffer):
            end = by_distance[..., side].unsqueeze(-1)
            columns.add_(end)
            corner.addcmul_(end, self.triangle(side, x))
        return buffer

    def mix(self, weights: Tensor, y: Tensor, table: Tensor) -> Tensor:
        """`sum_j w_ij (y_j + R[clip(j - i) + M])`, [N, rows, d], for weights that are 0 outside the keys."""
        mixed = torch.bmm(self.keys(weights), y)
        mixed.baddbmm_(self.bands(weights), table.expand(weights.size(0), -1, -1))
        for side, columns, corner in self.far(weights):
            mass = (corner * self.triangle(side, weights)).sum(-1) + columns.sum(-1)
            mixed.addcmul_(mass.unsqueeze(-1), table[side])
        return mixed

    def weights(self, query: Tensor, key: Tensor, table: Tensor, keep: Tensor | None) -> Tensor:
        """Softmax of the scores of scaled queries [N, rows, d], 0 where the buffer holds no key."""
        scores = self.products(query, key, table)
        scores[..., : self.before] = -math.inf
        scores[..., self.before + self.length :] = -math.inf
        if keep is not None:
            rows = keep[:, :, self.start : self.stop] if keep.size(2) > 1 else keep
            # half of the lowest number, and not -inf, for the rows that may see no key: see `additive_mask`
            by_head = self.keys(scores).unflatten(0, (keep.size(0), -1))
            by_head.masked_fill_(~rows, torch.finfo(scores.dtype).min / 2)
        return scores.softmax(-1)


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor,
        keep: Tensor | None,
        dropout: float,
    ) -> Tensor:
        ctx.shape, ctx.dropout = query.shape, dropout
        length, size = query.shape[2:]
        step = ROWS_ON_CPU if query.device.type == "cpu" else ROWS_ON_ACCELERATOR
        ctx.blocks = [
            _Block(start, min(length, start + step), length, table.size(0) // 2) for start in range(0, length, step)
        ]
        kept_weights: list[Tensor] = []
        kept_masks: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            q = (query / math.sqrt(size)).reshape(-1, length, size)
            k, v = (x.reshape(-1, length, size) for x in (key, value))
            output = torch.empty_like(q)
            for block in ctx.blocks:
                rows = slice(block.start, block.stop)
                weights = block.weights(q[:, rows], k, table, keep)
                if length <= KEEP_WEIGHTS_UP_TO:
                    kept_weights.append(weights)
                if dropout:
                    shape = block.keys(weights).shape
                    kept = torch.empty(shape, dtype=torch.bool, device=q.device).bernoulli_(1 - dropout)
                    kept_masks.append(kept)
                    weights = _drop(block, weights, kept)
                output[:, rows] = block.mix(weights, v, table)
            if dropout:
                output /= 1 - dropout
        ctx.save_for_backward(q, k, v, table, keep, output, *kept_weights, *kept_masks)
        return output.view(query.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, keep, output, *kept = ctx.saved_tensors
        kept_masks = kept[-len(ctx.blocks) :] if ctx.dropout else []
        kept_weights = kept[: len(kept) - len(kept_masks)]
        with torch.autocast(q.device.type, enabled=False):
            gradient = gradient.reshape(q.shape)
            # the softmax's correction sum_j w_ij dw_ij is g_i . o_i (FlashAttention, arXiv 2205.14135, B.4)
            correction = (gradient * output).sum(-1, keepdim=True)
            if ctx.dropout:
                gradient = gradient / (1 - ctx.dropout)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for index, block in enumerate(ctx.blocks):
                rows = slice(block.start, block.stop)
                weights = kept_weights[index] if kept_weights else block.weights(q[:, rows], k, table, keep)
                d_scores = block.products(gradient[:, rows], v, table)
                used = weights
                if ctx.dropout:
                    used = _drop(block, weights, kept_masks[index])
                    block.keys(d_scores).mul_(kept_masks[index])
                dv.baddbmm_(block.keys(used).transpose(1, 2), gradient[:, rows])
                d_scores.sub_(correction[:, rows]).mul_(weights)
                dq[:, rows] = block.mix(d_scores, k, table)
                dk.baddbmm_(block.keys(d_scores).transpose(1, 2), q[:, rows])
            dq /= math.sqrt(q.size(-1))
        return dq.view(ctx.shape), dk.view(ctx.shape), dv.view(ctx.shape), None, None, None


def _drop(block: _Block, weights: Tensor, kept: Tensor) -> Tensor:
    """The weights with 0 where `kept` is false, in a buffer of their own; not scaled up."""
    dropped = weights.clone()
    block.keys(dropped).mul_(kept)
    return dropped

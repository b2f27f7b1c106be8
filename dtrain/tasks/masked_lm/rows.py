"""Packed rows or pairs with their masks: which tokens are asked for in an epoch, and what a model reads in their place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dtrain.data import share_of
from dtrain.runtime.distributed import World
from dtrain.tasks.masked_lm.masking import OTHER, PIECE_START, SECOND, Masker
from dtrain.tasks.masked_lm.packing import PackedRows
from dtrain.tasks.masked_lm.pairs import PairedRows

Rows = PackedRows | PairedRows
HELD_OUT_EPOCH = 2**32  # beyond every epoch of training: held-out rows have the same masks at each evaluation


@dataclass(frozen=True)
class MaskedBatch:
    """Rows as the model reads them, and what it is asked."""

    input_ids: Tensor  # int64 [B, L]
    places: Tensor  # int64 [M], in the flattened [B · L]
    labels: Tensor  # int64 [M]
    pieces: Tensor | None = None  # int64 [B, L]; only where documents are kept apart
    segments: Tensor | None = None  # int64 [B, L], 0 for A and 1 for B; only of pairs
    other: Tensor | None = None  # int64 [B], 0 where B follows A and 1 where it does not; only of pairs

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The model's arguments."""
        given = {"input_ids": self.input_ids, "places": self.places, "pieces": self.pieces, "segments": self.segments}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def to(self, device: torch.device) -> MaskedBatch:
        given = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return MaskedBatch(**{name: tensor.to(device, non_blocking=True) for name, tensor in given.items()})


class MaskedRows:
    """Packed rows or pairs with the masks of one epoch after another.

    Attributes:
        units: int64 [N], how many tokens of a row are to be predicted; of the rows of the batch under way. Of pairs 1:
            their loss has two means, one over tokens and one over rows, and is summed up as the latter.
    """

    def __init__(self, rows: Rows, masker: Masker, world: World, *, separate: bool) -> None:
        self.rows, self.masker, self.world, self.separate = rows, masker, world, separate
        self.units = np.zeros(len(rows), dtype=np.int64)
        self._place = np.full(len(rows), -1, dtype=np.int64)  # of a row in `_chosen`
        self._mine = np.zeros(0, dtype=np.int64)  # rows of `_chosen`
        self._chosen = np.zeros((0, rows.length), dtype=bool)
        self._epoch = 0
        self.tokens_a_row = 1.0  # to be predicted in the batch under way, over all ranks

    def begin_step(self, batch: np.ndarray, epoch: int, step: int) -> None:
        """Draw the masks of this rank's share of a global batch, and count with the others (a collective).

        The draw comes first: on a GPU it is done while the last step is still at work there.
        """
        world, self._epoch = self.world, epoch
        self._place[self._mine] = -1
        self._mine = np.concatenate(share_of(batch, world.rank, world.size, 1, step))
        self._place[self._mine] = np.arange(len(self._mine))
        self._chosen = self.masker.choose(self.rows.take(self._mine, epoch)[1], self._mine, epoch)
        self.units[batch] = 0
        self.units[self._mine] = self._chosen.sum(axis=1)
        self.units[batch] = world.sum(torch.from_numpy(self.units[batch])).numpy()
        if not self.units[batch].any():
            self.units[batch[0]] = 1  # a batch in which nothing can be masked has a loss of 0
        if self.rows.paired:
            self.tokens_a_row = float(self.units[batch].sum()) / len(batch)
            self.units[batch] = 1

    def batch(self, index: np.ndarray) -> MaskedBatch:
        """Rows at `index` [B] of the epoch under way, masked."""
        tokens, kinds = self.rows.take(index, self._epoch)
        place = self._place[index]
        # A rank without rows borrows one to take part.
        chosen = self._chosen[place] if (place >= 0).all() else self.masker.choose(kinds, index, self._epoch)
        batch = masked_batch(self.masker, tokens, kinds, chosen, index, self._epoch, separate=self.separate)
        return with_pairs(batch, kinds) if self.rows.paired else batch


def masked_batch(
    masker: Masker,
    tokens: np.ndarray,
    kinds: np.ndarray,
    chosen: np.ndarray,
    index: np.ndarray,
    epoch: int,
    *,
    separate: bool,
) -> MaskedBatch:
    """Rows [B, L] with their chosen tokens replaced and asked for."""
    places = np.flatnonzero(chosen)
    pieces = torch.from_numpy(np.cumsum(kinds == PIECE_START, axis=1)) if separate else None
    return MaskedBatch(
        input_ids=torch.from_numpy(masker.replace(tokens, chosen, index, epoch)),
        places=torch.from_numpy(places),
        labels=torch.from_numpy(tokens.reshape(-1)[places].astype(np.int64)),
        pieces=pieces,
    )


def with_pairs(batch: MaskedBatch, kinds: np.ndarray) -> MaskedBatch:
    """Rows [B, L] that are pairs, with their texts told apart, and whether the second follows the first asked for."""
    segments = torch.from_numpy(((kinds & SECOND) > 0).astype(np.int64))
    return replace(batch, segments=segments, other=torch.from_numpy(((kinds[:, 0] & OTHER) > 0).astype(np.int64)))

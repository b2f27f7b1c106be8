"""Packed rows or pairs with the masks of an epoch: the tokens to predict, and the input that a model reads."""

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
    """Rows as the model reads them, and the labels that it has to predict."""

    input_ids: Tensor  # int64 [B, L]
    places: Tensor  # int64 [M], positions of the masked tokens in the flattened [B · L]
    labels: Tensor  # int64 [M], the tokens that stood there
    pieces: Tensor | None = None  # int64 [B, L], the number of each token's piece; only if documents are kept apart
    segments: Tensor | None = None  # int64 [B, L], 0 for A and 1 for B; only of pairs
    other: Tensor | None = None  # int64 [B], 0 where B follows A and 1 where it does not; only of pairs

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The arguments of the model."""
        given = {"input_ids": self.input_ids, "places": self.places, "pieces": self.pieces, "segments": self.segments}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def to(self, device: torch.device) -> MaskedBatch:
        given = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return MaskedBatch(**{name: tensor.to(device, non_blocking=True) for name, tensor in given.items()})


class MaskedRows:
    """Packed rows or pairs, masked anew in each epoch.

    Attributes:
        units: int64 [N], the number of tokens of a row that are to be predicted, set for the rows of the current global
            batch. For pairs it is 1: their loss is a mean over tokens plus a mean over rows, expressed as a sum over
            rows (see `MaskedLosses`).
        tokens_a_row: for pairs, the number of masked tokens of the current global batch divided by its rows.
    """

    def __init__(self, rows: Rows, masker: Masker, world: World, *, separate: bool) -> None:
        self.rows, self.masker, self.world, self.separate = rows, masker, world, separate
        self.units = np.zeros(len(rows), dtype=np.int64)
        self._place = np.full(len(rows), -1, dtype=np.int64)  # each row's position in `_chosen`
        self._mine = np.zeros(0, dtype=np.int64)  # the rows of `_chosen`
        self._chosen = np.zeros((0, rows.length), dtype=bool)
        self._epoch = 0
        self.tokens_a_row = 1.0

    def begin_step(self, batch: np.ndarray, epoch: int, step: int) -> None:
        """Draw the masks of this rank's share of a global batch, and count masked tokens over all ranks (a collective).

        The masks are drawn first, so that the CPU does this while a GPU is still busy with the previous step.
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
            self.units[batch[0]] = 1  # without any maskable token, the loss of the batch is 0
        if self.rows.paired:
            self.tokens_a_row = float(self.units[batch].sum()) / len(batch)
            self.units[batch] = 1

    def batch(self, index: np.ndarray) -> MaskedBatch:
        """The rows at `index` [B], with their masks of the current epoch."""
        tokens, kinds = self.rows.take(index, self._epoch)
        place = self._place[index]
        # A rank without rows of its own takes part in the step with a row of another rank.
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
    """Rows [B, L] whose chosen tokens are replaced in the input, and are the labels."""
    places = np.flatnonzero(chosen)
    pieces = torch.from_numpy(np.cumsum(kinds == PIECE_START, axis=1)) if separate else None
    return MaskedBatch(
        input_ids=torch.from_numpy(masker.replace(tokens, chosen, index, epoch)),
        places=torch.from_numpy(places),
        labels=torch.from_numpy(tokens.reshape(-1)[places].astype(np.int64)),
        pieces=pieces,
    )


def with_pairs(batch: MaskedBatch, kinds: np.ndarray) -> MaskedBatch:
    """The same rows as pairs: with segments, and the label whether the second text is from another document."""
    segments = torch.from_numpy(((kinds & SECOND) > 0).astype(np.int64))
    return replace(batch, segments=segments, other=torch.from_numpy(((kinds[:, 0] & OTHER) > 0).astype(np.int64)))

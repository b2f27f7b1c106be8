"""Sources of a teacher's outputs for a batch: a knowledge store, the teacher itself, or a student of the same group.

stored   read by row id, in the thread of the feed, while the previous step is computed
online   computed from the batch itself once it is on the device, and kept for other students
peer     outputs of another student of the group in the same step
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from dtrain.data.batch import KNOWN, Batch, ByName
from dtrain.knowledge.reader import StoreReader


class TeacherSource(ABC):
    """One teacher's outputs for batches of rows."""

    @abstractmethod
    def outputs(self, batch: Batch, kinds: Sequence[str]) -> ByName:
        """The outputs of the given kinds by name, without gradient; the first dimension is that of rows."""


class StoredTeacher(TeacherSource):
    """Reads a knowledge store by row id. It needs no batch on the device, so a thread can read ahead.

    Args:
        store: the reader of the store.
        partial: whether batches may hold rows that the store does not have; else these are an error.
    """

    def __init__(self, store: StoreReader, *, partial: bool = False) -> None:
        self.store, self.partial = store, partial

    def outputs(self, batch: Batch, kinds: Sequence[str]) -> ByName:
        return self.read(batch.ids, kinds)

    def read(self, ids: np.ndarray, kinds: Sequence[str]) -> ByName:
        """Outputs of the rows `ids`, float32 on the CPU: [B, width], or [B, N, width] for kinds with a vector a token.

        N is the length of the longest of these rows in the store. If the store lacks some of the rows (`partial`), as
        when the teacher reads another side of rows, their outputs are zeros, and the entry KNOWN, bool [B], says which
        rows the store has.

        Raises:
            StoreError: a kind is not in the store, or a row is not, unless `partial`.
        """
        known = self.store.holds(ids) if self.partial else np.ones(len(ids), dtype=bool)
        if known.all():
            return {kind: self.store.read(kind, ids) for kind in kinds}
        found: ByName = {KNOWN: torch.from_numpy(known)}
        some = known if known.any() else None
        for kind in kinds:
            # If the store has no row of the batch, its first row gives the shape.
            values = self.store.read(kind, ids[known] if some is not None else self.store.first_id)
            found[kind] = values.new_zeros(len(ids), *values.shape[1:])
            if some is not None:
                found[kind][torch.from_numpy(known)] = values
        return found


class Peer(TeacherSource):
    """A student of a group whose outputs in the current step are targets of the other students (mutual learning)."""

    def __init__(self) -> None:
        self._answers: ByName = {}

    def answer(self, outputs: ByName) -> None:
        """Store the detached outputs of the peer for the current batch."""
        self._answers = {name: tensor.detach() for name, tensor in outputs.items()}

    def outputs(self, batch: Batch, kinds: Sequence[str]) -> ByName:
        return {kind: self._answers[kind] for kind in kinds}

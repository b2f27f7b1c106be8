"""Where a teacher's outputs for a batch come from: read from its store, computed beside the student, or a peer's.

stored   known ahead by row id: read by the feed's thread while the step before is computed
online   computed from the very batch, once it is on the device; the last answers are kept for other students
peer     another student of the group, which answers in the same step
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
        """The asked kinds of output, by name, rows first, without gradient."""


class StoredTeacher(TeacherSource):
    """Reads a knowledge store by row id: needs no batch on the device, so a thread may read ahead.

    Args:
        partial: rows may be asked for that the store does not hold; else that is an error.
    """

    def __init__(self, store: StoreReader, *, partial: bool = False) -> None:
        self.store, self.partial = store, partial

    def outputs(self, batch: Batch, kinds: Sequence[str]) -> ByName:
        return self.read(batch.ids, kinds)

    def read(self, ids: np.ndarray, kinds: Sequence[str]) -> ByName:
        """Outputs of the rows `ids`, float32 on the CPU: [B, width], or [B, N, T] for kinds with a vector a character.

        Of a teacher that reads another side of rows, some may be unknown: then their outputs are zeros, and KNOWN, bool [B],
        says which are not.

        Raises:
            StoreError: a kind is not in the store, or none of the rows.
        """
        known = self.store.holds(ids) if self.partial else np.ones(len(ids), dtype=bool)
        if known.all():
            return {kind: self.store.read(kind, ids) for kind in kinds}
        found: ByName = {KNOWN: torch.from_numpy(known)}
        some = known if known.any() else None
        for kind in kinds:
            # Of a batch without any known row, the shape is that of any row of the store.
            values = self.store.read(kind, ids[known] if some is not None else self.store.first_id)
            found[kind] = values.new_zeros(len(ids), *values.shape[1:])
            if some is not None:
                found[kind][torch.from_numpy(known)] = values
        return found


class Peer(TeacherSource):
    """A student that trains beside others: its outputs of the step under way are what they learn from."""

    def __init__(self) -> None:
        self._answers: ByName = {}

    def answer(self, outputs: ByName) -> None:
        """Keep what the peer gave for the batch of this moment; others take it as given, without gradient."""
        self._answers = {name: tensor.detach() for name, tensor in outputs.items()}

    def outputs(self, batch: Batch, kinds: Sequence[str]) -> ByName:
        return {kind: self._answers[kind] for kind in kinds}

"""A batch: the rows of one micro-batch as tensors for a model and its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

ByName = dict[str, Tensor]
# A key beside a teacher's outputs, bool [B]: which rows it has outputs for. Absent where it has them for all rows.
KNOWN = "known"


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one micro-batch.

    Attributes:
        rows: positions of the rows among the training rows, int64 [B].
        ids: the rows' ids, int64 [B]; stored teacher outputs are looked up by them.
        inputs: the model's arguments, for example `input_ids` int64 [B, L].
        targets: what the losses compare with, by the name that a loss lists in its needs.
        labelled: whether a row has a label, bool [B].
        units: the weight of a row in a mean, int64 [B]: 1, or its number of characters.
        teachers: outputs by teacher and kind.
        peers: outputs by student and kind, of the students that train together with this one.
        counted: whether the rows belong to the global batch. A rank without rows of its own computes a row of another
            rank, so that it takes part in the collectives; such a row is not counted.
        room: the most rows that a rank has of the global batch; None: as many as this batch has.
        task: the name of the batch's task, where there are several tasks.
        beside: further arguments for teachers that are run on this batch and read more than the model does.
    """

    rows: np.ndarray
    ids: np.ndarray
    inputs: ByName
    targets: ByName
    labelled: Tensor
    units: Tensor
    teachers: dict[str, ByName] = field(default_factory=dict)
    peers: dict[str, ByName] = field(default_factory=dict)
    counted: bool = True
    room: int | None = None
    task: str = ""
    beside: ByName = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def map(self, work: Callable[[Tensor], Tensor]) -> Batch:
        """A copy with `work` applied to every tensor of the rows; outputs of teachers and peers stay as they are."""
        return replace(
            self,
            inputs={name: work(tensor) for name, tensor in self.inputs.items()},
            targets={name: work(tensor) for name, tensor in self.targets.items()},
            beside={name: work(tensor) for name, tensor in self.beside.items()},
            labelled=work(self.labelled),
            units=work(self.units),
        )

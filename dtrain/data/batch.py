"""A batch: some rows as a model and its losses read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

ByName = dict[str, Tensor]
KNOWN = "known"  # beside a teacher's outputs: which rows they are of, bool [B], where they are not of all


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one micro-batch.

    Attributes:
        rows: positions in the rows that are trained on, int64 [B].
        ids: the rows' ids, int64 [B], by which stored teacher outputs are found.
        inputs: the model's arguments, as `input_ids` int64 [B, L].
        targets: what the losses compare with, by need.
        beside: further arguments of teachers that answer beside the model, and read more than it does.
        labelled: whether a row has a label, bool [B].
        units: what a row counts in a mean, int64 [B]: 1, or its characters.
        teachers: outputs by teacher and kind.
        peers: outputs, by student and kind, of students that train beside this one.
        counted: whether its rows belong to the global batch; a rank without rows takes part with one of another rank's.
        task: of several, which one it is of.
        room: at most how many rows a rank has of the global batch; None: as many as there are here.
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
        """The same with `work` done to every tensor of the rows themselves."""
        return replace(
            self,
            inputs={name: work(tensor) for name, tensor in self.inputs.items()},
            targets={name: work(tensor) for name, tensor in self.targets.items()},
            beside={name: work(tensor) for name, tensor in self.beside.items()},
            labelled=work(self.labelled),
            units=work(self.units),
        )

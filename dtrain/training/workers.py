"""Which processes compute a model's outputs for the rows of a part: all ranks of a world, or one process alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.data import EncodedSplit, inference_batches
from dtrain.runtime.distributed import World
from dtrain.training.inference import forward_outputs, usual_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Computes a model's outputs for rows, on this process alone or shared with the other ranks.

    Workers that share rows must call the same methods in the same order, with the same weights.

    Attributes:
        threads: CPU cores of this process.
        batch_tokens: padded tokens in one call of the model; None: by the model, see `usual_tokens`.
        world: the ranks that share the rows; None: this process answers all of them by itself.
    """

    device: torch.device
    threads: int
    precision: str = "fp32"
    batch_tokens: int | None = None
    world: World | None = None

    @classmethod
    def of(cls, world: World, precision: str, batch_tokens: int | None = None, *, shared: bool = True) -> Workers:
        """All ranks of a world, or with `shared` False this rank alone."""
        return cls(world.device, world.threads, precision, batch_tokens, world if shared else None)

    def outputs(
        self,
        model: nn.Module,
        part: EncodedSplit,
        keep: Callable[[Any], tuple[Tensor, ...]],
        rows: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, tuple[Tensor, ...]]]:
        """This worker's batches as row numbers [B], and what `keep` picks of the model's output for each.

        The batches are a function of the rows alone, and batch i is computed by rank i % size: so the number of ranks
        changes no output.

        Args:
            rows: int [N], those to answer; by default all of the part.
        """
        chosen = np.arange(len(part)) if rows is None else rows
        tokens = self.batch_tokens or usual_tokens(model, self.device)
        batches = [chosen[batch] for batch in inference_batches(part.lengths[chosen], tokens)]
        mine = self.mine(batches)
        answers = forward_outputs(
            model, part, mine, outputs=keep, device=self.device, precision=self.precision, threads=self.threads
        )
        return zip(mine, answers, strict=True)

    def mine(self, items: list[T]) -> list[T]:
        """Those of `items` that are for this worker."""
        return items[self.world.rank :: self.world.size] if self.world else items

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over those who share the rows."""
        return self.world.sum(tensor) if self.world else tensor

    def gather(self, value: T) -> list[T]:
        """The values of those who share the rows, in the order of their ranks."""
        return self.world.gather_objects(value) if self.world else [value]

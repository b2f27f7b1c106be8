"""The formula of a loss over pairs of rows of the global batch: one value per row, [B]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtrain.losses.over_tokens import computed_in_full, without_padding
from dtrain.losses.torch_later import functional

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AllRows:
    """Access to the rows of the global batch, some of which are on this rank.

    Attributes:
        counted: bool [B]: whether a row belongs to the batch; a rank without rows takes part with another rank's row.
        gather: a collective: rows [B, F] of this rank -> those of all ranks that train together, [S, F], in some order
            and possibly with rows of zeros; the gradient of a row is the sum over all ranks.
    """

    counted: Tensor
    gather: Callable[[Tensor], Tensor]


@computed_in_full
def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of a row's states over its unpadded tokens: [B, N, H] and bool [B, N] -> [B, H]."""
    return without_padding(states, mask).sum(1) / mask.sum(1).clamp(min=1)[:, None]


@computed_in_full
def similarity_difference(student: Tensor, teacher: Tensor, all_rows: AllRows) -> Tensor:
    """1/S sum_j (G_t,ij - G_s,ij)^2, G the rows of A A^T divided by their norms, j over the S rows of the global batch.

    Summed over all rows i and divided by their number this is ||G_t - G_s||_F^2 / S^2.

    Args:
        student, teacher: float [B, F] and [B, F'], the matrix A of either model, one vector per row.
        all_rows: gathers the rows of the global batch.
    """
    # A row of zeros is similar to no row, and changes no other row's norm.
    kept = all_rows.counted.to(student.dtype)[:, None]
    rows = all_rows.gather(kept).sum().clamp(min=1)

    def similarities(own: Tensor) -> Tensor:
        own = own * kept
        return functional.normalize(own @ all_rows.gather(own).T, dim=1)

    return (similarities(student) - similarities(teacher)).square().sum(1) / rows

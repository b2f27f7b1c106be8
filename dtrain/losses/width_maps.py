"""Trained maps from a student's width to its teacher's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class WidthMaps(nn.Module):
    """A linear map without bias for each pair of layers, on the student's side (TinyBERT's W_h, 1909.10351, eq. 8).

    Args:
        student: width of the student's vectors.
        teacher: width of the teacher's.
        pairs: how many pairs of layers are compared.
    """

    def __init__(self, student: int, teacher: int, pairs: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(student, teacher, bias=False) for _ in range(pairs))

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """[..., student] -> [..., teacher], pair by pair."""
        dtype = next(self.parameters()).dtype
        return [one(state.to(dtype)) for one, state in zip(self.maps, states, strict=True)]

"""`sample` in place of a `grid`: members whose settings are drawn (`drawing.py`) from ranges and lists."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from dtrain.recipe.values import Closed, Paths

DIGITS = 4  # significant digits of a drawn number: resolved recipes stay readable


class Range(Closed):
    """The numbers from `low` to `high`, both included; integers if both are integers."""

    low: int | float  # the smallest value
    high: int | float  # the largest value
    log: bool = False  # draw uniformly on a logarithmic scale, as suits learning rates

    @model_validator(mode="after")
    def ascends(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"high: must be a number above low, found {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: must be above 0 where log is true, found {self.low:g}")
        return self

    def rounded(self, value: float) -> int | float:
        """`value` to `DIGITS` significant digits, kept within the range."""
        if isinstance(value, int):
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), float(self.low)), float(self.high))


Values = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[list[Any], Field(min_length=1), Tag("list")],
    Discriminator(lambda value: "Range" if isinstance(value, dict | Range) else "list"),
]


class Sample(Closed):
    """`count` models: the value of each named key is drawn from a range or a list."""

    count: Annotated[PositiveInt, Field(le=10_000)]  # how many models are drawn
    # what varies: a range {low, high, log} or a list for each key path
    keys: Annotated[dict[str, Values], Field(min_length=1)]
    # random; qmc: Sobol points, which leave no gaps; tpe: near settings that scored well in the runs of `after`
    sampler: Literal["random", "qmc", "tpe"] = "random"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # seed of the draws
    after: Paths = []  # run folders to learn from, for tpe only

    @field_validator("keys")
    @classmethod
    def plain_choices(cls, keys: dict[str, Any]) -> dict[str, Any]:
        for key, values in keys.items():
            if key in ("name", "grid", "sample"):
                raise ValueError(f"{key!r} cannot vary")
            if isinstance(values, list) and not all(isinstance(v, str | int | float | None) for v in values):
                raise ValueError(f"{key}: a list to draw from holds numbers and texts; lists and mappings go to `grid`")
        return keys

    @model_validator(mode="after")
    def learns_from_somewhere(self) -> Sample:
        if (self.sampler == "tpe") != bool(self.after):
            raise ValueError("after: run folders to learn from, for sampler 'tpe' and no other")
        return self

"""Types of values that several sections of a recipe share."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Size = Annotated[int, Field(gt=0, le=65536)]
Column = Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]
Paths = list[str]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Output = Literal["logits", "emissions", "marginals", "features"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
LONGEST_NAME = 120
PATTERN = re.compile(r"[A-Za-z0-9*?\[\]._=+-]+")


class Closed(BaseModel):
    """A section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), str_strip_whitespace=True)


def check_name(name: str) -> str:
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"must be at most {LONGEST_NAME} letters, digits, '.', '_', '-', '=', '+', starting with a letter or digit"
        )
    return name

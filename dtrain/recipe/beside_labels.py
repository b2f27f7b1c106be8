"""What a teacher may be trained on beside its labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dtrain.recipe.values import Closed, Positive


class ToleranceSpec(Closed):
    """A teacher that does not put all of its belief into one class (`top_gap`, Yang et al. AAAI 2019)."""

    weight: Positive = 0.1  # weight of the gap between the largest logit and the mean of the next k - 1
    k: Annotated[int, Field(ge=2)] = 5  # logits that are looked at

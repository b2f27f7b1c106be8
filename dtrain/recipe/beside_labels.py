"""Further losses of a teacher, beside the one on its labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.values import Closed, Positive, Size


class ToleranceSpec(Closed):
    """Keep a teacher from giving one class all of the probability (`top_gap`, Yang et al. AAAI 2019)."""

    weight: Positive = 0.1  # weight of the gap between the largest logit and the mean of the next k - 1
    k: Annotated[int, Field(ge=2)] = 5  # how many of the largest logits enter the loss


class DomainAdversarySpec(Closed):
    """Keep a teacher's features from telling labelled rows and transfer rows apart (loss `domain_adversary`).

    The teacher is then trained on some transfer rows as well, which do not enter the loss on labels.
    """

    rows: Positive = 1.0  # transfer rows for each labelled row, drawn by the seed; at most all of them
    weight: Positive = 0.1  # weight of the discriminator's loss, whose gradient is reversed for the features
    hidden: Size = 128  # hidden units of the discriminator
    strength: Positive = 1.0  # factor on the reversed gradient that reaches the features, beside the weight
    # the kinds of rows that the discriminator tells apart: rows with and without a label (labels), or rows with several
    # sides and rows with one (pairs)
    between: Literal["pairs", "labels"] = "labels"
    balanced: bool = True  # whether both kinds have the same weight in total, however many rows each has

    def check(self, context: Context, report: Reporter) -> None:
        """Report why there are no two kinds of rows, as far as the recipe tells."""
        if self.between == "pairs" and not context.sides:
            report(
                "between", f"'pairs' are rows of several sides, and those of {context.key} have none (allowed: labels)"
            )
        elif not context.transfer:
            report("", f"tells labelled rows from transfer rows, and there is no {context.key}.transfer")

    @property
    def loss(self) -> LossSpec:
        """The loss as a term of a weighted sum."""
        return LossSpec.model_validate({"type": "domain_adversary", **self.model_dump(exclude={"rows"})})

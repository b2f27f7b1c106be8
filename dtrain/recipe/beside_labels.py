"""What a teacher may be trained on beside its labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dtrain.recipe.context import Context, Reporter
from dtrain.recipe.losses import LossSpec
from dtrain.recipe.values import Closed, Positive, Size


class ToleranceSpec(Closed):
    """A teacher that does not put all of its belief into one class (`top_gap`, Yang et al. AAAI 2019)."""

    weight: Positive = 0.1  # weight of the gap between the largest logit and the mean of the next k - 1
    k: Annotated[int, Field(ge=2)] = 5  # logits that are looked at


class DomainAdversarySpec(Closed):
    """A teacher whose features do not tell labelled text from the text that it is to answer (`domain_adversary`).

    It is then trained on some transfer rows as well, which have no part in the loss on labels.
    """

    rows: Positive = 1.0  # transfer rows for each labelled row, drawn by the seed; as many as there are at most
    weight: Positive = 0.1  # weight of the discriminator's loss, which reaches the features with its sign turned round
    hidden: Size = 128  # units of the discriminator
    strength: Positive = 1.0  # how much of its gradient reaches the features, beside the weight
    # the kinds of rows that are told apart: with a label and without one (labels), or of pairs and of one side (pairs)
    between: Literal["pairs", "labels"] = "labels"
    balanced: bool = True  # whether both kinds count the same, however many rows they have

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
        """The term."""
        return LossSpec.model_validate({"type": "domain_adversary", **self.model_dump(exclude={"rows"})})

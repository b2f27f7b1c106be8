"""Adversarial training: how far embeddings are moved against the model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from dtrain.recipe.values import Closed, Positive


class AdversarialSpec(Closed):
    """Perturb the embeddings against the model in training: methods of Goodfellow 2014, Miyato 2017, Madry 2018.

    With `norm: relative`, `epsilon` and `step_size` are shares of the norm of the row's own embeddings: 0.1 moves a
    row by a tenth of its size, whatever the model and the length. With `norm: absolute` they are norms themselves.
    An epsilon or step_size without `norm` is absolute: so it was meant before there was a choice.
    """

    # one step along the gradient (fgm), along its sign (fgsm), or several small steps (pgd)
    type: Literal["fgm", "fgsm", "pgd"]
    # whether sizes are shares of the norm of the row's embeddings, or norms themselves
    norm: Literal["relative", "absolute"] = "relative"
    epsilon: Positive = 0.1  # how far embeddings are moved; absolute: default 1.0
    steps: PositiveInt = 3  # for pgd: number of steps
    step_size: Positive = 0.03  # for pgd: how far each step goes; absolute: default 0.3
    weight: Positive = 1.0  # weight of the loss on the perturbed input, which is added to the plain one

    @model_validator(mode="after")
    def sizes_of_their_norm(self) -> AdversarialSpec:
        given = self.model_fields_set
        values: dict[str, Any] = {}
        if "norm" not in given and given & {"epsilon", "step_size"}:
            values["norm"] = "absolute"
        if values.get("norm", self.norm) == "absolute":
            values |= {key: size for key, size in (("epsilon", 1.0), ("step_size", 0.3)) if key not in given}
        self.__dict__.update(values)  # still not given: a grid may go on to name one of them
        return self

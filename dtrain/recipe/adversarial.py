"""The section `adversarial`: training on embeddings that are perturbed against the model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from dtrain.recipe.values import Closed, Positive


class AdversarialSpec(Closed):
    """Perturb the embeddings against the model in training: methods of Goodfellow 2014, Miyato 2017, Madry 2018.

    With `norm: relative`, `epsilon` and `step_size` are shares of the norm of the row's own embeddings: 0.1 moves a
    row by a tenth of its norm, whatever the model and the length. With `norm: absolute` they are the norms of the
    perturbation. An `epsilon` or `step_size` that is given without `norm` is absolute, as it was before `norm` existed.
    """

    # one step along the gradient (fgm), along its sign (fgsm), or several small steps (pgd)
    type: Literal["fgm", "fgsm", "pgd"]
    # whether sizes are shares of the norm of the row's embeddings, or norms of the perturbation itself
    norm: Literal["relative", "absolute"] = "relative"
    epsilon: Positive = 0.1  # size of the perturbation; default with norm absolute: 1.0
    steps: PositiveInt = 3  # for pgd: number of steps
    step_size: Positive = 0.03  # for pgd: size of each step; default with norm absolute: 0.3
    weight: Positive = 1.0  # weight of the loss on the perturbed input, which is added to the loss on the plain input

    @model_validator(mode="after")
    def sizes_of_their_norm(self) -> AdversarialSpec:
        given = self.model_fields_set
        values: dict[str, Any] = {}
        if "norm" not in given and given & {"epsilon", "step_size"}:
            values["norm"] = "absolute"
        if values.get("norm", self.norm) == "absolute":
            values |= {key: size for key, size in (("epsilon", 1.0), ("step_size", 0.3)) if key not in given}
        self.__dict__.update(values)  # they do not count as given, so that a grid may still set one of them
        return self

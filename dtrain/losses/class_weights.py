"""Weights of classes in a cross-entropy: `class_weights` is checked as a recipe has it and applied to batches.

Recipes are checked by this module without importing torch (see torch_later.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BeforeValidator

from dtrain.errors import InputError
from dtrain.losses.torch_later import torch

if TYPE_CHECKING:
    from torch import Tensor

BALANCED = "balanced"


def _checked(value: Any) -> Any:
    """The mapping with labels as text (YAML reads 1 as a number) and weights over 0."""
    if value is None or value == BALANCED:
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError("must be `balanced`, or a mapping from labels to numbers")
    for label, weight in value.items():
        if isinstance(label, bool):
            raise ValueError("put labels that YAML reads as true or false in quotes, as 'yes'")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"must be a number over 0 for {str(label)!r}")
    return {str(label): float(weight) for label, weight in value.items()}


ClassWeights = Annotated[dict[str, float] | Literal["balanced"] | None, BeforeValidator(_checked)]


def weights_in_order(given: Mapping[str, float] | str, counts: Mapping[str, int]) -> tuple[float, ...]:
    """The weight of each label: as given, or 1 if not named; `balanced`: n / (C n_c), or 1 for a label without rows.

    Args:
        given: weights by label, or `balanced`.
        counts: labelled training rows of each label (n_c, in all n), in the order of the labels' numbers; C is the number
            of labels that have some. Over these rows balanced weights have the mean 1.

    Raises:
        InputError: `given` names an unknown label.
    """
    if not isinstance(given, str):
        for label in given:
            if label not in counts:
                raise InputError(f"class_weights: no label is called {label!r} (allowed: {', '.join(counts)})")
        return tuple(given.get(label, 1.0) for label in counts)
    rows, classes = sum(counts.values()), sum(count > 0 for count in counts.values())
    return tuple(rows / (classes * count) if count else 1.0 for count in counts.values())


def of_rows(class_weights: ClassWeights, labels: Tensor, values: Tensor) -> Tensor:
    """Values of rows [B] times the weights of their labels, int64 [B]; unchanged if there are no weights.

    Args:
        class_weights: numbers in the order of the labels, which `weights_in_order` made of what the recipe says.
    """
    if class_weights is None:
        return values
    numbers = cast(Sequence[float], class_weights)
    return _on_device(tuple(numbers), values.device, values.dtype)[labels] * values


@functools.cache
def _on_device(weights: tuple[float, ...], device: Any, dtype: Any) -> Tensor:
    """The weights as a tensor; it is kept, so that later steps wait for no copy."""
    return torch.tensor(weights, dtype=dtype).to(device, non_blocking=True)

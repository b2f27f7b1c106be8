"""Losses on the exits of a model with several classifiers, [E, B, C], the last exit last: one value per row, [B].

Recipes are checked against the signatures without importing torch (see torch_later.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dtrain.losses.class_weights import ClassWeights, of_rows
from dtrain.losses.outputs import Smoothing, Temperature, full_precision
from dtrain.losses.registry import register
from dtrain.losses.torch_later import functional

if TYPE_CHECKING:
    from torch import Tensor


@register("exits", "labels")
def exits_cross_entropy(
    exits: Tensor, labels: Tensor, *, label_smoothing: Smoothing = 0.0, class_weights: ClassWeights = None
) -> Tensor:
    """The *mean* over exits of -w_y sum_c q_c log softmax(z_e)_c, q and w as of `cross_entropy` (Phuong and Lampert, ICCV 2019).

    Args:
        exits: float [E, B, C].
        labels: int64 [B], each in [0, C).
        label_smoothing: e, the share of the label that is spread over all classes.
        class_weights: w by label, or `balanced`; left out: 1.

    Returns:
        float [B].
    """
    logits = full_precision(exits)
    values = functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none", label_smoothing=label_smoothing
    )
    return of_rows(class_weights, labels, values.view(len(logits), -1).mean(0))


@register("exits")
def exits_distillation(
    exits: Tensor, *, source: Literal["last", "ensemble"] = "last", temperature: Temperature = 1.0
) -> Tensor:
    """The *mean* over exits of T^2 KL(p || softmax(z_e / T)), summed over classes (Phuong and Lampert, ICCV 2019).

    p is softmax(z_E / T) of the last exit, whose own term is then 0, or the mean over exits of their softmax. No
    gradient flows through p. It needs no label and no teacher.

    Args:
        exits: float [E, B, C].
        source: whether p is that of the last exit or the mean over all exits.
        temperature: T, which logits are divided by.

    Returns:
        float [B].
    """
    students = functional.log_softmax(full_precision(exits) / temperature, dim=-1)
    target = students[-1].exp() if source == "last" else students.exp().mean(0)
    divergences = functional.kl_div(students, target.detach().expand_as(students), reduction="none").sum(-1)
    return divergences.mean(0) * temperature**2

"""A student's loss: the weighted sum of its terms over the rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtrain.losses.registry import Loss, coerce_parameters, find_loss

if TYPE_CHECKING:
    from torch import Tensor

    from dtrain.recipe.schema import LossSpec


@dataclass(frozen=True)
class Term:
    """One loss with its weight and parameters; `teachers` None means all that are given."""

    name: str
    loss: Loss
    weight: float
    parameters: dict[str, Any]
    teachers: list[str] | None


class LossSum:
    """sum_i weight_i sum_rows term_i, as sums, for the caller to divide by the global number of rows.

    The divisor of every term is the number of *all* rows of the global batch, over ranks and micro-batches:
    a row without a label lacks the hard term and changes no other row's weight. So the result does not depend
    on how a batch is cut, and a batch that mixes labelled and unlabelled rows needs no second count.
    """

    def __init__(self, terms: list[Term]) -> None:
        self.terms = terms

    @property
    def names(self) -> list[str]:
        """Names of the terms, as in the results of a call."""
        return [term.name for term in self.terms]

    def __call__(
        self, student_logits: Tensor, labels: Tensor, teachers: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Evaluate every term without waiting for the device.

        Args:
            student_logits: float [B, C].
            labels: int64 [B]; -1 is a row without a label, which terms that need labels leave out.
            teachers: float [B, C] for each teacher by name.

        Returns:
            The weighted total (a scalar with gradient), and by name of term the unweighted sum over its rows
            (detached) and the number of those rows.

        Raises:
            KeyError: if the logits of a term's teacher are not among `teachers`.
        """
        import torch

        labelled = labels >= 0
        total = torch.zeros((), device=student_logits.device)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for term in self.terms:
            needs = term.loss.needs
            inputs = [labels.clamp(min=0) if need == "labels" else _stack(term, teachers) for need in needs]
            values = term.loss.function(student_logits, *inputs, **term.parameters)
            valid = labelled if "labels" in needs else torch.ones_like(labelled)
            term_sum = torch.where(valid, values, 0.0).sum()
            sums[term.name], counts[term.name] = term_sum.detach(), valid.sum()
            if term.weight:  # at weight 0 a term is only watched: 0 x inf would spoil the total
                total = total + term.weight * term_sum
        return total, sums, counts


def build_losses(specs: Iterable[LossSpec]) -> LossSum:
    """The callable of a recipe's `losses`; a type that comes again is named `type.2`, `type.3`, ...

    Raises:
        ValueError: for an unknown loss or a bad parameter, and if there is no loss.
    """
    terms: list[Term] = []
    for spec in specs:
        earlier = sum(term.loss.name == spec.type for term in terms)
        name = f"{spec.type}.{earlier + 1}" if earlier else spec.type
        parameters = coerce_parameters(spec.type, spec.parameters())
        terms.append(Term(name, find_loss(spec.type), spec.weight, parameters, spec.teachers))
    if not terms:
        raise ValueError("losses: none given")
    return LossSum(terms)


def _stack(term: Term, teachers: Mapping[str, Tensor]) -> Tensor:
    """The logits of a term's teachers, [K, B, C]."""
    import torch

    names = term.teachers if term.teachers is not None else list(teachers)
    if missing := [name for name in names if name not in teachers]:
        raise KeyError(f"{term.name}: no logits of teacher {missing[0]!r} (given: {', '.join(teachers) or 'none'})")
    if not names:
        raise KeyError(f"{term.name}: needs the logits of a teacher, and none are given")
    return torch.stack([teachers[name] for name in names])

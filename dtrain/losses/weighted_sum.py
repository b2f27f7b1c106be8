"""A student's loss: the weighted sum of its terms over the rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtrain.losses.registry import GOLD, OF_TEACHERS, Loss, coerce_parameters, find_loss

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
    """sum_i weight_i sum_rows term_i, as sums, for the caller to divide by the global number of rows or characters.

    The divisor of every term is that of *all* rows of the global batch, over ranks and micro-batches: a row without
    a label lacks the hard term and changes no other row's weight. So the result does not depend on how a batch is
    cut, and a batch that mixes labelled and unlabelled rows needs no second count.
    """

    def __init__(self, terms: list[Term]) -> None:
        self.terms = terms

    @property
    def names(self) -> list[str]:
        """Names of the terms, as in the results of a call."""
        return [term.name for term in self.terms]

    def need(self, name: str) -> bool:
        """Whether some term needs this input."""
        return any(name in term.loss.needs for term in self.terms)

    @property
    def teacher_outputs(self) -> dict[str, set[str] | None]:
        """The stored outputs that are read, each with the teachers it is read of (None: all)."""
        found: dict[str, set[str] | None] = {}
        for term in self.terms:
            output = term.loss.teacher_output
            if output is not None:
                known = found.get(output, set())
                found[output] = None if known is None or term.teachers is None else known | set(term.teachers)
        return found

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        teachers: Mapping[str, Mapping[str, Tensor]],
        labelled: Tensor,
        units: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Evaluate every term without waiting for the device.

        Args:
            inputs: what the student gave and what is known of the rows, by need.
            teachers: the stored outputs of each teacher, by its name and the output's.
            labelled: bool [B]; rows without a label are left out by terms that need one.
            units: what a row counts in the means that are logged, [B]: 1 (None), or its characters.

        Returns:
            The weighted total (a scalar with gradient), and by name of term the unweighted sum over its rows
            (detached) and the sum of their units.

        Raises:
            KeyError: if an input or a teacher's output is not among what is given.
        """
        import torch

        units = torch.ones_like(labelled, dtype=torch.int64) if units is None else units
        total = torch.zeros((), device=labelled.device)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for term in self.terms:
            values = term.loss.function(*self._given(term, inputs, teachers), **term.parameters)
            hard = not GOLD.isdisjoint(term.loss.needs)
            valid = labelled if hard else torch.ones_like(labelled)
            term_sum = torch.where(valid, values, 0.0).sum()
            sums[term.name], counts[term.name] = term_sum.detach(), torch.where(valid, units, 0).sum()
            if term.weight:  # at weight 0 a term is only watched: 0 x inf would spoil the total
                total = total + term.weight * term_sum
        return total, sums, counts

    def _given(
        self, term: Term, inputs: Mapping[str, Tensor], teachers: Mapping[str, Mapping[str, Tensor]]
    ) -> list[Tensor]:
        """A term's inputs in order; those of its teachers side by side."""
        import torch

        found = []
        for need in term.loss.needs:
            if not need.startswith(OF_TEACHERS):
                found.append(inputs[need])
                continue
            output = need.removeprefix(OF_TEACHERS)
            names = term.teachers if term.teachers is not None else list(teachers)
            missing = [name for name in names if output not in teachers.get(name, {})]
            if missing:
                known = ", ".join(teachers) or "none"
                raise KeyError(f"{term.name}: no {output} of teacher {missing[0]!r} (given: {known})")
            if not names:
                raise KeyError(f"{term.name}: needs the {output} of a teacher, and none are given")
            found.append(torch.stack([teachers[name][output] for name in names]))
        return found


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

"""A student's loss: the weighted sum of its terms over the rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtrain.errors import InputError
from dtrain.losses.registry import OF_TEACHERS, Loss, coerce_parameters, find_loss

if TYPE_CHECKING:
    from torch import Tensor

    from dtrain.recipe.losses import LossSpec, Weighting, WeightSchedule


@dataclass(frozen=True)
class Term:
    """One loss with its weight and parameters; `teachers` None means all that are given.

    Without `weighting` a loss sees all teachers at once and has its own way with them. With it, its value is
    sum_k w_k loss(student, teacher k).
    """

    name: str
    loss: Loss
    weight: float | WeightSchedule
    parameters: dict[str, Any]
    teachers: list[str] | None
    weighting: Weighting | None = None

    def weight_at(self, progress: float) -> float:
        """Its weight when this share of all steps is done."""
        return self.weight if isinstance(self.weight, float | int) else self.weight.at(progress)

    def teachers_among(self, teachers: Iterable[str]) -> list[str]:
        return list(teachers) if self.teachers is None else self.teachers


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
            for output in sorted(term.loss.outputs_read(term.weighting)):
                known = found.get(output, set())
                found[output] = None if known is None or term.teachers is None else known | set(term.teachers)
        return found

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        teachers: Mapping[str, Mapping[str, Tensor]],
        labelled: Tensor,
        units: Tensor | None = None,
        *,
        progress: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Evaluate every term without waiting for the device.

        Args:
            inputs: what the student gave and what is known of the rows, by need.
            teachers: the stored outputs of each teacher, by its name and the output's.
            labelled: bool [B]; rows without a label are left out by terms that need one.
            units: what a row counts in the means that are logged, [B]: 1 (None), or its characters.
            progress: the share of all steps that are done, in [0, 1).

        Returns:
            The weighted total (a scalar with gradient), and by name of term the unweighted sum over its rows
            (detached) and the sum of their units.

        Raises:
            KeyError: if an input or a teacher's output is not among what is given.
            InputError: if a term's teachers have outputs of different widths.
        """
        import torch

        units = torch.ones_like(labelled, dtype=torch.int64) if units is None else units
        known = {**inputs, "labelled": labelled, "progress": progress}
        total = torch.zeros((), device=labelled.device)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for term in self.terms:
            values = self._values(term, known, teachers)
            valid = labelled if term.loss.hard else torch.ones_like(labelled)
            term_sum = torch.where(valid, values, 0.0).sum()
            sums[term.name], counts[term.name] = term_sum.detach(), torch.where(valid, units, 0).sum()
            weight = term.weight_at(progress)
            if weight:  # at weight 0 a term is only watched: 0 x inf would spoil the total
                total = total + weight * term_sum
        return total, sums, counts

    def _values(self, term: Term, known: Mapping[str, Any], teachers: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """A term's values [B]."""
        import torch

        needs = term.loss.needs
        given = [
            _of_teachers(term, need.removeprefix(OF_TEACHERS), teachers)
            if need.startswith(OF_TEACHERS)
            else known[need]
            for need in needs
        ]
        if term.weighting is None:
            return term.loss.function(*given, **term.parameters)
        count = len(next(values for need, values in zip(needs, given, strict=True) if need.startswith(OF_TEACHERS)))

        def against(teacher: int, **changed: Any) -> Tensor:
            mine = [
                values[teacher] if need.startswith(OF_TEACHERS) else changed.get(need, values)
                for need, values in zip(needs, given, strict=True)
            ]
            return term.loss.function(*mine, **term.parameters)

        values = torch.stack([against(teacher) for teacher in range(count)])
        weights = _teacher_weights(term, known, teachers, against, count)
        return (weights.to(values.dtype) * values).sum(0)


def _of_teachers(term: Term, output: str, teachers: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """An output of a term's teachers side by side, [K, B, ...]."""
    import torch

    names = term.teachers_among(teachers)
    missing = [name for name in names if output not in teachers.get(name, {})]
    if missing:
        known = ", ".join(teachers) or "none"
        raise KeyError(f"{term.name}: no {output} of teacher {missing[0]!r} (given: {known})")
    if not names:
        raise KeyError(f"{term.name}: needs the {output} of a teacher, and none are given")
    found = [teachers[name][output] for name in names]
    if len({one.shape[-1] for one in found}) > 1:
        widths = ", ".join(f"{name} {one.shape[-1]}" for name, one in zip(names, found, strict=True))
        raise InputError(f"{term.name}: its teachers' {output} are of different widths ({widths})")
    return torch.stack(found)


def _teacher_weights(
    term: Term,
    known: Mapping[str, Any],
    teachers: Mapping[str, Mapping[str, Tensor]],
    against: Callable[..., Tensor],
    count: int,
) -> Tensor:
    """[K, B], see `weighting.py`; `against(k, logits=...)` are the term's values for teacher k."""
    import torch

    from dtrain.losses import weighting
    from dtrain.losses.outputs import full_precision

    spec, labelled = term.weighting, known["labelled"]
    assert spec is not None
    if spec.type == "average":
        return weighting.fixed_weights([1.0] * count, len(labelled), labelled.device)
    if spec.type == "fixed":
        shares = [spec.weights[name] for name in term.teachers_among(teachers)]
        return weighting.fixed_weights(shares, len(labelled), labelled.device)
    if spec.type == "gradient":
        of_student = next(need for need in ("logits", "features") if need in term.loss.needs)
        point = full_precision(
            known[of_student]
        ).detach()  # else the programme divides by differences of rounded numbers
        with torch.enable_grad():
            gradients = [
                torch.func.grad(lambda output, k=k: against(k, **{of_student: output}).sum())(point)
                for k in range(count)
            ]
        return weighting.gradient_weights(torch.stack(gradients), spec.limit)
    logits = _of_teachers(term, "logits", teachers)
    if spec.type == "entropy":
        return weighting.entropy_weights(logits)
    return weighting.confidence_weights(logits, known["labels"], labelled)


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
        terms.append(Term(name, find_loss(spec.type), spec.weight, parameters, spec.teachers, spec.weighting))
    if not terms:
        raise ValueError("losses: none given")
    return LossSum(terms)

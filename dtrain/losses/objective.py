"""What is trained: a model together with its losses, as one module.

    batch ── outputs() ──▶ what the losses need of it ── parts() ──▶ weighted total, and each term's sum and count

An engine wraps, shards, checkpoints and steps the objective as a whole, so a loss that has weights of its own (a
regressor, a variance, a discriminator) is trained and resumed like any other weight. Publishing takes `.model` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.data.batch import KNOWN
from dtrain.errors import InputError
from dtrain.knowledge.kinds import at_layer, is_inside, layer_of
from dtrain.losses import weighting
from dtrain.losses.class_weights import weights_in_order
from dtrain.losses.layers import Pairs, Shapes
from dtrain.losses.outputs import full_precision, mutual_divergence
from dtrain.losses.over_rows import AllRows
from dtrain.losses.registry import EXTRA_KEYS, OF_TEACHERS, TWICE, Loss, find_loss
from dtrain.losses.width_maps import WidthMaps
from dtrain.runtime.gather import gather_rows

if TYPE_CHECKING:
    from dtrain.data.batch import Batch
    from dtrain.recipe.losses import LossSpec, Weighting, WeightSchedule

# The weighted total (a scalar with gradient), and by name of term the unweighted sum (detached) and its count.
Losses = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]

OF_PEERS = "peers."
PEERS = Loss("peers", mutual_divergence, ("logits", "peers.logits"), None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Term:
    """One loss with its weight and parameters.

    Attributes:
        teachers: names of the teachers that it compares with; None: all that a batch has outputs of.
        weighting: how several teachers are weighed; the value is then sum_k w_k loss(student, teacher k). Without it
            the loss gets all teachers at once, and combines them as its own documentation says.
        pairs: the layers of the student and of its teacher that it compares, for a loss on hidden states or attention.
    """

    name: str
    loss: Loss
    weight: float | WeightSchedule
    parameters: dict[str, Any]
    teachers: list[str] | None = None
    weighting: Weighting | None = None
    pairs: Pairs = ()

    def weight_at(self, progress: float) -> float:
        """Its weight when the share `progress` of all steps is done."""
        return self.weight if isinstance(self.weight, float | int) else self.weight.at(progress)

    def teachers_among(self, teachers: Iterable[str]) -> list[str]:
        """Names of its teachers, of those that are given."""
        return list(teachers) if self.teachers is None else self.teachers

    @property
    def arguments(self) -> dict[str, Any]:
        """The parameters that its function takes; the others choose its inputs."""
        return {key: value for key, value in self.parameters.items() if key not in EXTRA_KEYS}

    def asked(self, need: str) -> list[str]:
        """The names of the outputs that a need stands for: one for each compared layer, in order, or its kind alone."""
        kind = need.removeprefix(OF_TEACHERS)
        if not is_inside(kind):
            return [kind]
        return [at_layer(kind, pair[need.startswith(OF_TEACHERS)]) for pair in self.pairs]


class LossSum(nn.Module):
    """sum_i weight_i sum_rows term_i: sums, which the caller divides by the global number of rows or characters.

    The divisor of every term is that of *all* rows of the global batch, over ranks and micro-batches: a row without
    a label lacks the hard term and changes no other row's weight. So the result does not depend on how a batch is
    cut, and a batch that mixes labelled and unlabelled rows needs no second count.

    Args:
        terms: the losses.
        widths: last dimensions by need, as `{"features": 512, "teachers.features": 768}`; what losses with weights
            of their own are built from. Those in `shapes` of a term's teachers take precedence.
        shapes: of the transformers, for losses on hidden states or attention, and of the teachers' outputs.

    Raises:
        InputError: a loss compares layers that do not exist or do not fit, or a model without a transformer.

    Attributes:
        whole: whether, where layers are compared, outputs that no term depends on take part with a gradient of 0.
    """

    whole = True

    def __init__(
        self, terms: list[Term], widths: Mapping[str, int] | None = None, shapes: Shapes | None = None
    ) -> None:
        super().__init__()
        self.terms = [_with_pairs(term, shapes or Shapes()) for term in terms]
        # Losses with weights; a dot is not allowed in a module's name, and a repeated loss is called `type.2`.
        self.stateful = nn.ModuleDict()
        for term in self.terms:
            weights = _weights_of(term, _all_widths(term, widths or {}, shapes or Shapes()))
            if weights is not None:
                self.stateful[_module_name(term)] = weights

    @property
    def lasting(self) -> list[str]:
        """Names of the modules in `stateful` whose weights are kept from phase to phase."""
        names = [_module_name(term) for term in self.terms if term.loss.lasting]
        return [name for name in names if name in self.stateful]

    @property
    def names(self) -> list[str]:
        """Names of the terms, as in the results of a call."""
        return [term.name for term in self.terms]

    def need(self, name: str) -> bool:
        """Whether some term needs this input."""
        return any(name in term.loss.needs for term in self.terms)

    @property
    def needs(self) -> set[str]:
        """The names of all inputs that some term needs, without the outputs of teachers and peers."""
        return {
            name
            for term in self.terms
            for need in term.loss.needs
            if not need.startswith((OF_TEACHERS, OF_PEERS))
            for name in term.asked(need)
        } | {TWICE for term in self.terms if term.loss.twice}

    @property
    def teacher_outputs(self) -> dict[str, set[str] | None]:
        """The teacher outputs that are read, each with the names of the teachers concerned (None: all)."""
        found: dict[str, set[str] | None] = {}
        for term in self.terms:
            read = term.loss.outputs_read(term.weighting)
            for output in [name for kind in sorted(read) for name in term.asked(OF_TEACHERS + kind)]:
                known = found.get(output, set())
                found[output] = None if known is None or term.teachers is None else known | set(term.teachers)
        return found

    def outputs_of(self, teacher: str) -> list[str]:
        """The outputs of one teacher that are read."""
        return [output for output, names in self.teacher_outputs.items() if names is None or teacher in names]

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        teachers: Mapping[str, Mapping[str, Tensor]],
        labelled: Tensor,
        units: Tensor | None = None,
        *,
        progress: float = 0.0,
        peers: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> Losses:
        """Evaluate every term without waiting for the device.

        Args:
            inputs: the model's outputs and what is known of the rows, by need.
            teachers: the outputs of each teacher, by its name and the output's.
            labelled: bool [B]; rows without a label are left out by terms that need one.
            units: what a row counts in means, int64 [B]: 1 (None), or its characters.
            progress: the share of all steps that are done, in [0, 1).
            peers: the outputs of students that train beside this one, as `teachers`.

        Raises:
            KeyError: an input or a teacher's output is not among what is given.
            InputError: a term's teachers have outputs of different widths.
        """
        units = torch.ones_like(labelled, dtype=torch.int64) if units is None else units
        known = {**inputs, "labelled": labelled, "progress": progress}
        total = torch.zeros((), device=labelled.device)
        if self.whole and any(term.loss.inside for term in self.terms):
            # Layers after those that are compared, and the classifier, take part with a gradient of 0: DDP waits for
            # the gradient of each parameter, and FSDP2 gathers a block for backward only when a gradient reaches its
            # output.
            plain = [value for name, value in inputs.items() if layer_of(name) is None and isinstance(value, Tensor)]
            answers = [value for value in plain if value.requires_grad]
            total = total + sum(
                torch.where(torch.zeros_like(value, dtype=torch.bool), value, 0.0).sum() for value in answers
            )
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for term in self.terms:
            if term.loss is PEERS and not peers:
                continue  # the last student that still trains has no peers
            taught = self._taught(term, teachers)
            values = self._values(term, known | {"taught": taught}, teachers, peers or {})
            if term.loss.inside:  # means over a row's tokens; the row counts its units in the global mean
                values = values * units
            valid = labelled if term.loss.hard else torch.ones_like(labelled)
            if taught is not None:
                valid = labelled | taught if "taught" in term.loss.needs else valid & taught
            term_sum = torch.where(valid, values, 0.0).sum()
            sums[term.name], counts[term.name] = term_sum.detach(), torch.where(valid, units, 0).sum()
            weight = term.weight_at(progress)
            if weight:  # at weight 0 a term is only logged: 0 x inf would spoil the total
                total = total + weight * term_sum
            elif _module_name(term) in self.stateful:
                # Every parameter takes part in every backward pass: DDP waits for the gradient of each.
                own = self.stateful[_module_name(term)].parameters()
                total = total + 0.0 * sum(parameter.sum() for parameter in own)
        return total, sums, counts

    @staticmethod
    def _taught(term: Term, teachers: Mapping[str, Mapping[str, Tensor]]) -> Tensor | None:
        """The rows that all of a term's teachers have seen, bool [B]; None where they have seen every row.

        A teacher that reads another language has not seen rows without text in it.
        """
        if term.loss.teacher_output is None:
            return None
        read = (teachers.get(name, {}) for name in term.teachers_among(teachers))
        known = [outputs[KNOWN] for outputs in read if KNOWN in outputs]
        return torch.stack(known).all(0) if known else None

    def _values(
        self,
        term: Term,
        known: Mapping[str, Any],
        teachers: Mapping[str, Mapping[str, Tensor]],
        peers: Mapping[str, Mapping[str, Tensor]],
    ) -> Tensor:
        """A term's values [B]."""
        name = _module_name(term)
        needs, function = term.loss.needs, term.loss.function
        parameters = term.arguments
        given = [_input(term, need, known, teachers, peers) for need in needs]
        if term.loss.mapped and name in self.stateful:
            given[0] = self.stateful[name](given[0])
        elif name in self.stateful and term.loss.weights is not None:
            given.insert(0, self.stateful[name])
        elif name in self.stateful:
            function, parameters = self.stateful[name], {}
        if term.weighting is None:
            return function(*given, **parameters)
        count = len(next(values for need, values in zip(needs, given, strict=True) if need.startswith(OF_TEACHERS)))

        def against(teacher: int, **changed: Any) -> Tensor:
            mine = [
                values[teacher] if need.startswith(OF_TEACHERS) else changed.get(need, values)
                for need, values in zip(needs, given, strict=True)
            ]
            return function(*mine, **parameters)

        values = torch.stack([against(teacher) for teacher in range(count)])
        weights = _teacher_weights(term, known, teachers, against, count)
        return (weights.to(values.dtype) * values).sum(0)


class ModelOutputs(Protocol):
    """A function that calls a model for a batch and returns what the losses need by name; see `Task.ask`."""

    def __call__(self, model: nn.Module, batch: Batch, needs: set[str]) -> dict[str, Tensor]: ...


class Objective(nn.Module):
    """A model and its losses.

    Args:
        model: what is published in the end.
        losses: called with (outputs and targets by name, teachers, labelled, units, progress=, peers=).
        ask: calls the model for a batch, and returns its outputs by name.
        together: whether all ranks train it, each on its share of a batch.
    """

    def __init__(self, model: nn.Module, losses: nn.Module, ask: ModelOutputs, *, together: bool = False) -> None:
        super().__init__()
        self.model = model
        self.losses = losses
        self._ask = ask
        self._together = together

    def forward(self, batch: Batch, progress: float = 0.0) -> Losses:
        """The losses of a batch; engines call this, so that sharded and replicated models see one call per pass."""
        return self.parts(self.outputs(batch), batch, progress)

    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """Call the model once, for all that the losses need."""
        return self._ask(self.model, batch, self.losses_of(batch).needs)

    def losses_of(self, batch: Batch) -> LossSum:
        """The losses of the batch's task; most objectives have one task only."""
        return self.losses  # type: ignore[return-value]  # pre-training's are no LossSum, but called like one

    def parts(self, outputs: Mapping[str, Tensor], batch: Batch, progress: float = 0.0) -> Losses:
        """The weighted total and each term's sum and count, from outputs that are already computed."""
        known: dict[str, Any] = {**batch.targets, **outputs}
        losses = self.losses_of(batch)
        if "all_rows" in losses.needs:
            known["all_rows"] = self._all_rows(batch)
        found: Losses = losses(
            known,
            batch.teachers,
            batch.labelled,
            batch.units,
            progress=progress,
            peers=batch.peers,
        )
        return found

    def _all_rows(self, batch: Batch) -> AllRows:
        counted = torch.full_like(batch.labelled, batch.counted)
        room = len(batch) if batch.room is None else batch.room
        return AllRows(counted, functools.partial(gather_rows, room=room) if self._together else lambda rows: rows)

    @staticmethod
    def inner(module: nn.Module) -> nn.Module:
        """The model of an objective; any other module itself."""
        return module.model if isinstance(module, Objective) else module

    @staticmethod
    def folder_names(module: nn.Module) -> dict[str, str]:
        """The name of each parameter in the model folder, by its name in `module`; those of losses keep theirs."""
        wrapped = ("model." if isinstance(module, Objective) else "") + getattr(
            Objective.inner(module), "wrapped_as", ""
        )
        return {name: name.removeprefix(wrapped) for name, _ in module.named_parameters()}


def build_losses(
    specs: Iterable[LossSpec],
    widths: Mapping[str, int] | None = None,
    shapes: Shapes | None = None,
    label_counts: Mapping[str, int] | None = None,
) -> LossSum:
    """The losses of a recipe; a type that comes again is named `type.2`, `type.3`, ...

    Args:
        label_counts: labelled training rows of each label, in the order of the labels; `class_weights` need them.

    Raises:
        ValueError: an unknown loss, a bad parameter, or no loss at all.
        InputError: as `LossSum`.
    """
    terms: list[Term] = []
    for spec in specs:
        earlier = sum(term.loss.name == spec.type for term in terms)
        name = f"{spec.type}.{earlier + 1}" if earlier else spec.type
        parameters = spec.parameters()
        if parameters.get("class_weights") is not None:
            parameters["class_weights"] = weights_in_order(parameters["class_weights"], label_counts or {})
        terms.append(Term(name, find_loss(spec.type), spec.weight, parameters, spec.teachers, spec.weighting))
    if not terms:
        raise ValueError("losses: none given")
    return LossSum(terms, widths, shapes)


def with_peers(losses: LossSum) -> LossSum:
    """Append the term of deep mutual learning to `losses`; returns them (Zhang et al. 2018, 1706.00384, eq. 3 to 5)."""
    losses.terms = [*losses.terms, Term(PEERS.name, PEERS, 1.0, {})]
    return losses


def _with_pairs(term: Term, shapes: Shapes) -> Term:
    """The term with the layers that it compares, once both models are known."""
    if not term.loss.inside or term.pairs:
        return term
    names = term.teachers_among(shapes.teachers)
    if len(names) != 1:
        raise InputError(f"losses.{term.name}.teachers: compares with the layers of one teacher, found {len(names)}")
    teacher = shapes.teachers.get(names[0])
    if shapes.student is None or teacher is None:
        whose = "the student" if shapes.student is None else f"its teacher {names[0]}"
        raise InputError(f"losses.{term.name}: {whose} has no transformer whose layers could be compared")
    try:
        return replace(term, pairs=term.loss.pairs(shapes.student, teacher, term.parameters))
    except ValueError as error:
        raise InputError(f"losses.{term.name}: {error} (teacher {names[0]})") from None


def _all_widths(term: Term, widths: Mapping[str, int], shapes: Shapes) -> dict[str, int]:
    """What a loss with weights is built from: widths by need, and of transformers the numbers of layers and heads."""
    found = dict(widths)
    # Of the term's own teachers. Where these differ, the term is refused when it first gets their outputs.
    for teacher in term.teachers_among(shapes.outputs):
        found |= {f"{OF_TEACHERS}{kind}": width for kind, width in shapes.outputs.get(teacher, {}).items()}
    if term.loss.inside and shapes.student is not None:
        (teacher,) = term.teachers_among(shapes.teachers)
        for of, shape in (("", shapes.student), (OF_TEACHERS, shapes.teachers[teacher])):
            found |= {f"{of}{kind}": shape.width for kind in ("embeddings", "embedding_gradients", "hidden_states")}
            found |= {f"{of}{kind}": shape.width // shape.heads for kind in ("queries", "keys", "values")}
            found |= {f"{of}layers": shape.layers, f"{of}heads": shape.heads}
        found["pairs"] = len(term.pairs)
    return found


def _weights_of(term: Term, widths: Mapping[str, int]) -> nn.Module | None:
    """The module of a term's weights; None where it has none."""
    loss = term.loss
    if isinstance(loss.function, type):
        made: nn.Module = loss.function(widths, **term.parameters)
        return made
    if loss.weights is not None:
        made = loss.weights(widths, **term.arguments)
        return made
    if not loss.mapped:
        return None
    own, theirs = widths[loss.needs[0]], widths[OF_TEACHERS + loss.needs[0]]
    return WidthMaps(own, theirs, len(term.pairs)) if own != theirs or term.parameters["map"] == "always" else None


def _module_name(term: Term) -> str:
    return term.name.replace(".", "_")


def _input(
    term: Term,
    need: str,
    known: Mapping[str, Any],
    teachers: Mapping[str, Mapping[str, Tensor]],
    peers: Mapping[str, Mapping[str, Tensor]],
) -> Any:
    if is_inside(need.removeprefix(OF_TEACHERS)):
        return _of_layers(term, need, known, teachers)
    if need.startswith(OF_TEACHERS):
        return _of_teachers(term, need.removeprefix(OF_TEACHERS), teachers)
    if need.startswith(OF_PEERS):
        return torch.stack([outputs[need.removeprefix(OF_PEERS)] for outputs in peers.values()])
    return known[need]


def _of_layers(
    term: Term, need: str, known: Mapping[str, Any], teachers: Mapping[str, Mapping[str, Tensor]]
) -> list[Tensor]:
    """One tensor for each pair of layers, of the student or of the term's teacher."""
    found = known
    if need.startswith(OF_TEACHERS):
        (teacher,) = term.teachers_among(teachers)
        found = teachers.get(teacher, {})
    missing = [name for name in term.asked(need) if name not in found]
    if missing:
        raise KeyError(f"{term.name}: no {missing[0]} is given")
    return [found[name] for name in term.asked(need)]


def _of_teachers(term: Term, output: str, teachers: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """An output of all teachers of a term, stacked: [K, B, ...]."""
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
    if found[0].dim() == 3 and len({one.shape[1] for one in found}) > 1:
        # Outputs of tokens are as long as the longest row that a store has, and teachers of other sides lack other rows.
        longest = max(one.shape[1] for one in found)
        found = [functional.pad(one, (0, 0, 0, longest - one.shape[1])) for one in found]
    return torch.stack(found)


def _teacher_weights(
    term: Term,
    known: Mapping[str, Any],
    teachers: Mapping[str, Mapping[str, Tensor]],
    against: Callable[..., Tensor],
    count: int,
) -> Tensor:
    """The teachers' weights [K, B] (`weighting.py`); `against(k, logits=...)` gives the term's values for teacher k."""
    spec, labelled = term.weighting, known["labelled"]
    assert spec is not None
    if spec.type == "average":
        return weighting.fixed_weights([1.0] * count, len(labelled), labelled.device)
    if spec.type == "fixed":
        shares = [spec.weights[name] for name in term.teachers_among(teachers)]
        return weighting.fixed_weights(shares, len(labelled), labelled.device)
    if spec.type == "gradient":
        of_student = next(need for need in ("logits", "features") if need in term.loss.needs)
        # In float32 at least: the quadratic programme divides by differences of the gradients' products.
        point = full_precision(known[of_student]).detach()
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

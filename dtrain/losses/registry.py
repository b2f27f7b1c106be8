"""Which losses there are, what each needs and which parameters it takes.

A loss is a pure function, or a class of modules for a loss with weights of its own:

    name(<one tensor for each need>, *, parameter: Annotation = default) -> values [B]

    class name(nn.Module):
        def __init__(self, ..., *, parameter: Annotation = default)
        def forward(self, <one tensor for each need>) -> values [B]

registered by `@register(*needs)`. Each kind of task says in `tasks/rules.py` what its losses may ask for; a loss is for
every task that has all of its needs. A function may have weights of its own, too: `weights=` builds their module, which
is then its first argument. The keyword-only arguments of the function, or of the class's constructor, are its keys in a
recipe; their annotations (a type, or `Annotated[type, pydantic.Field(gt=0)]` for a range) say which values are allowed.
This module checks them without importing torch (1.3 s).

A loss on what is inside a transformer needs kinds with `inside=True` (knowledge/kinds.py), of the student and of one
teacher. It gets *lists*: one tensor for each pair of layers, the student's and the teacher's in the same order. Its key
`layers` chooses the pairs; a loss on `embeddings` alone compares one pair and has no such key. Its values are means
over the tokens of a row, which `token_mask` tells.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from dtrain.errors import suggest
from dtrain.knowledge.kinds import find_kind, is_inside, kind_names
from dtrain.losses.layers import EncoderShape, Layers, Pairs, layer_pairs
from dtrain.tasks.rules import COMMON_NEEDS, loss_tasks

OF_TEACHERS = "teachers."
TWICE = "twice"  # added to the needs where a loss differentiates the student, so that its model is called accordingly
COMMON_KEYS = ("type", "weight", "teachers", "weighting")  # keys of every loss of a recipe
# keys that a loss has because of how it was registered
EXTRA_KEYS = {
    "layers": "the pairs of layers that are compared: `uniform` (l, l n_t / n_s), `skip` (l, k l with k = "
    "floor(n_t / n_s)), `last` (the last of each), or pairs [student's, teacher's]; layer 0 is the embeddings.",
    "map": "whether a trained linear map brings the student's vectors, layer by layer, to the teacher's width: where the "
    "widths differ (`auto`), or also where they do not (`always`).",
}

# (student's shape, teacher's, pairs of layers, parameters) -> why they do not fit, with key and remedy; else empty
Fits = Callable[[EncoderShape, EncoderShape, Pairs, Mapping[str, Any]], str]

Registered = TypeVar("Registered", bound=Callable[..., Any])


class _Weighting(typing.Protocol):
    @property
    def type(self) -> str: ...


@dataclass(frozen=True)
class Loss:
    """A registered loss.

    Attributes:
        function: the function, or the class of modules.
        needs: the tensors that it is called with, in order.
        logits: the kinds of logits that it is for, in the words of `TaskRules.logits`; empty: any kind.
        parameters: the schema of its keys in a recipe.
        stateful: whether it has, or may have, weights that are trained with the student.
        weights: builds the module of its weights from (widths, **parameters); the module is then its first argument.
        mapped: whether its first input goes through a trained linear map where student and teacher differ in width.
        equal_heads: whether student and teacher must have the same number of attention heads.
        fits: tells what else keeps two transformers from being compared.
        twice: whether it differentiates the student itself, so that training needs second derivatives.
        lasting: whether its weights are kept from phase to phase; else each phase begins with new ones.
        turns: from its parameters, the number of steps that train its own weights alone before each step that trains
            the model alone; 0: each step trains both.
    """

    name: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    parameters: type[BaseModel]
    stateful: bool = False
    logits: tuple[str, ...] = ()
    weights: Callable[..., Any] | None = None
    mapped: bool = False
    equal_heads: bool = False
    fits: Fits | None = None
    twice: bool = False
    lasting: bool = False
    turns: Callable[[Mapping[str, Any]], int] | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks that it is for, as `tasks/rules.py` names them."""
        return _tasks_with(self.needs, self.logits)

    @property
    def teacher_output(self) -> str | None:
        """An output of teachers that it compares with; None where it needs no teacher."""
        return next(iter(self.teacher_outputs), None)

    @property
    def teacher_outputs(self) -> list[str]:
        """The outputs of teachers that it compares with."""
        return [need.removeprefix(OF_TEACHERS) for need in self.needs if need.startswith(OF_TEACHERS)]

    @property
    def kinds_inside(self) -> list[str]:
        """The kinds from inside a transformer that it compares, of student or teacher."""
        return list(dict.fromkeys(filter(is_inside, (need.removeprefix(OF_TEACHERS) for need in self.needs))))

    @property
    def inside(self) -> bool:
        """Whether it compares what is inside transformers."""
        return bool(self.kinds_inside)

    @property
    def layered(self) -> bool:
        """Whether it has the key `layers`."""
        return any(find_kind(kind).last_layer is None for kind in self.kinds_inside)

    @property
    def first_layer(self) -> int:
        """The first layer that has all that it compares."""
        return max((find_kind(kind).first_layer for kind in self.kinds_inside), default=0)

    @property
    def over_pairs_of_rows(self) -> bool:
        """Whether it compares every row of the global batch with every other."""
        return "all_rows" in self.needs

    @property
    def hard(self) -> bool:
        """Whether rows without a label are left out of it."""
        gold = set().union(*(rules.gold for rules in loss_tasks().values()))
        return not gold.isdisjoint(self.needs) and "labelled" not in self.needs

    def pairs(self, student: EncoderShape, teacher: EncoderShape, parameters: Mapping[str, Any]) -> Pairs:
        """The layers of two transformers that it compares; () for a loss that compares none.

        Raises:
            ValueError("key: what is wrong", or without a key): a layer that does not exist, or models that do not fit.
        """
        if not self.inside:
            return ()
        if self.equal_heads and student.heads != teacher.heads:
            raise ValueError(
                f"compares head by head, and the student has {student.heads} attention heads, its teacher "
                f"{teacher.heads}; give the student as many (model.heads)"
            )
        found: Pairs = ((0, 0),)
        if self.layered:
            try:
                found = layer_pairs(parameters["layers"], student.layers, teacher.layers, self.first_layer)
            except ValueError as error:
                raise ValueError(f"layers: {error}") from None
        arguments = {key: value for key, value in parameters.items() if key not in EXTRA_KEYS}
        if self.fits and (why := self.fits(student, teacher, found, arguments)):
            raise ValueError(why)
        return found

    def outputs_read(self, weighting: _Weighting | None) -> set[str]:
        """The outputs of teachers that it reads, including those that its teachers are weighted by."""
        by_logits = weighting is not None and weighting.type in ("confidence", "entropy")
        return set(self.teacher_outputs) | ({"logits"} if by_logits and self.teacher_outputs else set())


_LOSSES: dict[str, Loss] = {}


def needs_of(task: str) -> list[str]:
    """The needs that losses of a task may have.

    They are its kinds of output, of the student float [B, ...] and, with `teachers.` before the kind, of K teachers
    float [K, B, ...]; what its rules name; and what every task has.
    """
    rules = loss_tasks()[task]
    kinds = kind_names(task, rules.outputs)
    return [*kinds, *rules.needs, *COMMON_NEEDS, *(OF_TEACHERS + kind for kind in kinds)]


def _tasks_with(needs: tuple[str, ...], logits: tuple[str, ...]) -> list[str]:
    fit = (task for task, rules in loss_tasks().items() if not logits or rules.logits in logits)
    return [task for task in fit if set(needs) <= set(needs_of(task))]


def register(
    *needs: str,
    name: str | None = None,
    logits: tuple[str, ...] = (),
    layers: Any = "uniform",
    mapped: bool = False,
    weights: Callable[..., Any] | None = None,
    equal_heads: bool = False,
    fits: Fits | None = None,
    twice: bool = False,
    lasting: bool = False,
    turns: Callable[[Mapping[str, Any]], int] | None = None,
) -> Callable[[Registered], Registered]:
    """Make a function, or a class of modules, a loss; `needs` are its inputs, which some task has all of.

    Args:
        name: its `type` in a recipe; by default that of the function or class.
        logits: the kinds of logits that it is for (`TaskRules.logits`); empty: any kind.
        layers: the default of its key `layers`, where it has one.
        mapped: whether it has the key `map`; its first input then has the teacher's width when it is called.
        weights: builds the module of its weights from (widths, **parameters), then its first argument. `widths`
            holds last dimensions by need, and the numbers `layers`, `heads`, `teachers.layers`, `teachers.heads` and
            `pairs`; of training rows `training_rows`, `labelled_rows` and `paired_rows`.
        fits: gives the reason why two transformers cannot be compared, "key: reason"; empty where they can.
        equal_heads, twice, lasting, turns: see `Loss`.
    """
    tasks = _tasks_with(needs, logits)

    def add(registered: Registered) -> Registered:
        known_as = name or registered.__name__
        if known_as in _LOSSES:
            raise ValueError(f"loss {known_as!r} is registered twice")
        if not tasks:
            allowed = "; ".join(f"{task}: {', '.join(needs_of(task))}" for task in loss_tasks())
            raise ValueError(f"loss {known_as!r} needs {', '.join(needs)} (allowed: {allowed})")
        stateful = isinstance(registered, type) or weights is not None or mapped
        loss = Loss(known_as, registered, needs, BaseModel, stateful, logits, weights, mapped, equal_heads, fits, twice)
        loss = replace(loss, lasting=lasting, turns=turns)
        extra: dict[str, Any] = {"layers": (Layers, layers)} if loss.layered else {}
        if mapped:
            extra["map"] = (Literal["auto", "always"], "auto")
        _LOSSES[known_as] = replace(loss, parameters=_parameter_schema(known_as, registered, extra))
        return registered

    return add


def loss_names(task: str | None = None) -> list[str]:
    """Sorted names of the losses of a task (by the name in its rules, as 'classification'), or of all losses."""
    return sorted(name for name, loss in _LOSSES.items() if task is None or task in loss.tasks)


def find_loss(name: str) -> Loss:
    """The registered loss; ValueError with the allowed names if there is none."""
    if name not in _LOSSES:
        hint = suggest(name, loss_names(), cutoff=0.5)
        raise ValueError(f"type: unknown loss {name!r}{hint} (allowed: {', '.join(loss_names())})")
    return _LOSSES[name]


def coerce_parameters(type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a loss with defaults, checked and converted to their types.

    Raises:
        ValueError("key: what is wrong (what is allowed)"): an unknown loss, an unknown key or a value out of range.
    """
    loss = find_loss(type)
    for name, value in parameters.items():
        field = loss.parameters.model_fields.get(name)
        if isinstance(value, bool) and field is not None and field.annotation in (int, float):
            raise ValueError(f"{name}: must be a number, found {str(value).lower()}")
    try:
        checked = loss.parameters.model_validate(dict(parameters))
    except ValidationError as error:
        keys = [*COMMON_KEYS, *loss.parameters.model_fields]
        raise ValueError("; ".join(_explain(problem, keys) for problem in error.errors())) from None
    return {name: getattr(checked, name) for name in loss.parameters.model_fields}


def _parameter_schema(name: str, registered: Callable[..., Any], extra: dict[str, Any]) -> type[BaseModel]:
    """The keyword-only arguments of a function, or of a class's constructor, and `extra` fields, as a schema."""
    function: Any = registered.__init__ if isinstance(registered, type) else registered  # type: ignore[misc]
    keyword_only = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    if taken := [key for key in keyword_only if key in (*COMMON_KEYS, *extra)]:
        raise ValueError(f"loss {name!r}: {taken[0]!r} is a key of every loss")
    # The other annotations name torch's types, which are not imported when this runs: resolve only these.
    annotated = SimpleNamespace(__annotations__={key: p.annotation for key, p in keyword_only.items()})
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    hints = typing.get_type_hints(annotated, globalns=namespace, include_extras=True)
    fields: dict[str, Any] = {
        key: (hints[key], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for key, parameter in keyword_only.items()
    } | extra
    return create_model(f"{name}_parameters", __config__=ConfigDict(extra="forbid"), **fields)


def _explain(problem: Any, keys: list[str]) -> str:
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"{name}: unknown key{suggest(name, keys, cutoff=0.5)} (allowed: {', '.join(keys)})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"

"""Which losses there are, what each needs and which parameters it takes.

A loss is a pure function

    name(<one tensor for each need>, *, parameter: Annotation = default) -> values [B]

registered by `@register(*needs)`. Its keyword-only arguments are its keys in a recipe; their annotations
(a type, or `Annotated[type, pydantic.Field(gt=0)]` for a range) say which values are allowed. Recipes are
checked by this file, so neither it nor the modules with losses import torch at module level (1.3 s).
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

if TYPE_CHECKING:
    from dtrain.recipe.training import Weighting

# What a loss may ask for, by task: of the student, of the rows, and of K teachers (`teachers.` and a stored output).
# N is the number of characters of the longest row, T that of tags; what lies beyond a row's end is no number to use.
NEEDS = {
    "classification": (
        "logits",  # float [B, C]
        "features",  # float [B, F]: the pooled vector that reaches the classifier
        "exits",  # float [E, B, C]: logits of every exit, the last one's are `logits`
        "labels",  # int64 [B], in [0, C)
        "labelled",  # bool [B]: whether the row has a label
        "progress",  # a number in [0, 1): the share of all steps that are done
        "teachers.logits",  # float [K, B, C]
        "teachers.features",  # float [K, B, F]
    ),
    "tagging": (
        "nll",  # float [B]: -log p(gold tags), as the model decides: CRF or softmax
        "emissions",  # float [B, N, T]
        "marginals",  # float [B, N, T]: log p(tag of a character)
        "mask",  # bool [B, N]: the characters of a row
        "labelled",  # as above
        "progress",  # as above
        "teachers.emissions",  # float [K, B, N, T]
        "teachers.marginals",  # float [K, B, N, T], probabilities
    ),
}
GOLD = {"labels", "nll"}  # a row without a label lacks the terms that need one of these and not "labelled"
OF_TEACHERS = "teachers."
COMMON_KEYS = ("type", "weight", "teachers", "weighting")  # keys of every loss of a recipe

LossFunction = TypeVar("LossFunction", bound=Callable[..., Any])


@dataclass(frozen=True)
class Loss:
    """A registered loss: its function, the tensors it needs (in order), and the schema of its parameters."""

    name: str
    task: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    parameters: type[BaseModel]

    @property
    def teacher_output(self) -> str | None:
        """The stored output of teachers that it compares with; None where it needs no teacher."""
        return next((need.removeprefix(OF_TEACHERS) for need in self.needs if need.startswith(OF_TEACHERS)), None)

    @property
    def hard(self) -> bool:
        """Whether rows without a label are left out of it."""
        return not GOLD.isdisjoint(self.needs) and "labelled" not in self.needs

    def outputs_read(self, weighting: Weighting | None) -> set[str]:
        """The stored outputs of teachers that it reads, those that its teachers are weighed by included."""
        if self.teacher_output is None:
            return set()
        return {self.teacher_output} | (
            {"logits"} if weighting and weighting.type in ("confidence", "entropy") else set()
        )


_LOSSES: dict[str, Loss] = {}


def register(*needs: str) -> Callable[[LossFunction], LossFunction]:
    """Make a function a loss under its own name; `needs` are its inputs, all of one task."""
    task = next((task for task, allowed in NEEDS.items() if set(needs) <= set(allowed)), None)

    def add(function: LossFunction) -> LossFunction:
        name = function.__name__
        if name in _LOSSES:
            raise ValueError(f"loss {name!r} is registered twice")
        if task is None:
            allowed = "; ".join(f"{task}: {', '.join(names)}" for task, names in NEEDS.items())
            raise ValueError(f"loss {name!r} needs {', '.join(needs)} (allowed: {allowed})")
        _LOSSES[name] = Loss(name, task, function, needs, _parameter_schema(function))
        return function

    return add


def loss_names(task: str | None = None) -> list[str]:
    """Names of the losses of a task ('classification' or 'tagging'), or of all."""
    return sorted(name for name, loss in _LOSSES.items() if task in (None, loss.task))


def find_loss(name: str) -> Loss:
    """The registered loss; ValueError with the allowed names if there is none."""
    if name not in _LOSSES:
        raise ValueError(f"type: unknown loss {name!r}{_hint(name, loss_names())} (allowed: {', '.join(loss_names())})")
    return _LOSSES[name]


def check_loss(type: str, parameters: Mapping[str, Any]) -> None:
    """ValueError("key: what is wrong (what is allowed)") unless the loss exists and takes the parameters."""
    coerce_parameters(type, parameters)


def coerce_parameters(type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a loss with defaults, checked and converted to their types (YAML reads 1e-3 as text).

    Raises:
        ValueError: for an unknown loss, an unknown key or a value out of range; see `check_loss`.
    """
    loss = find_loss(type)
    try:
        checked = loss.parameters.model_validate(dict(parameters))
    except ValidationError as error:
        keys = [*COMMON_KEYS, *loss.parameters.model_fields]
        raise ValueError("; ".join(_explain(problem, keys) for problem in error.errors())) from None
    return {name: getattr(checked, name) for name in loss.parameters.model_fields}


def _parameter_schema(function: Callable[..., Any]) -> type[BaseModel]:
    keyword_only = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    if taken := [name for name in keyword_only if name in COMMON_KEYS]:
        raise ValueError(f"loss {function.__name__!r}: {taken[0]!r} is a key of every loss")
    # The other annotations name torch's types, which are not imported when this runs: resolve only these.
    annotated = SimpleNamespace(__annotations__={name: p.annotation for name, p in keyword_only.items()})
    namespace = inspect.unwrap(function).__globals__
    hints = typing.get_type_hints(annotated, globalns=namespace, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in keyword_only.items()
    }
    return create_model(f"{function.__name__}_parameters", __config__=ConfigDict(extra="forbid"), **fields)


def _explain(problem: Any, keys: list[str]) -> str:
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"{name}: unknown key{_hint(name, keys)} (allowed: {', '.join(keys)})"
    message = problem["msg"]
    return f"{name}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"


def _hint(name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""

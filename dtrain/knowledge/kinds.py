"""Kinds of output that a teacher may hand on: one registered line each.

The store, the losses' needs, the recipe's `knowledge.outputs` and precomputing follow from the registry. A kind from
outside the package is one call of `register_kind`, and the losses that read it:

    register_kind(OutputKind("confidence", "classification", lambda output: output.logits.amax(1, keepdim=True)))

Each kind names the task that it was made for; another kind of task may use it, too, and says so (`TaskRules.outputs`).

Recipes are checked with it, so this module imports nothing of the package and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def _no_options(model: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class OutputKind:
    """One kind of output. Losses ask for it by its name, of teachers by `teachers.` and its name.

    Attributes:
        name: the word in a recipe, and of the store's column.
        task: the task whose losses may ask for it, as `tasks/rules.py` names it, beside those that share it.
        pick: the tensor in a model's output, of any float type; None where the model has none.
        per_token: a vector for each character of a row, [B, N, T]; else one for each row, [B, width].
        stored: whether the knowledge store may hold it (as float16 or float32; losses read float32).
        top_k: whether the store may keep the k largest numbers of each row alone (`knowledge.top_k`).
        options: the arguments that make a model return it.
    """

    name: str
    task: str
    pick: Callable[[Any], Any]
    per_token: bool = False
    stored: bool = True
    top_k: bool = False
    options: Callable[[Any], Mapping[str, Any]] = field(default=_no_options)


_KINDS: dict[str, OutputKind] = {}


def register_kind(kind: OutputKind) -> None:
    """Add a kind; ValueError where its name is taken."""
    if kind.name in _KINDS:
        raise ValueError(f"output kind {kind.name!r} is registered twice")
    _KINDS[kind.name] = kind


def find_kind(name: str) -> OutputKind:
    """The kind of this name; ValueError with the known ones if there is none."""
    if name not in _KINDS:
        raise ValueError(f"unknown output {name!r} (known: {', '.join(_KINDS)})")
    return _KINDS[name]


def kind_names(task: str | None = None, shared: Sequence[str] = (), *, stored: bool = False) -> list[str]:
    """Kinds of a task, or of all, in the order of their registration; the first of a task is its default.

    Args:
        task: a task's name, as its rules give it.
        shared: names of kinds that it shares with other tasks (`TaskRules.outputs`); they come first.
    """
    own = [kind.name for kind in _KINDS.values() if task in (None, kind.task) and kind.name not in shared]
    return [name for name in [*shared, *own] if find_kind(name).stored or not stored]


def _of_tagger(output: Any) -> bool:
    return getattr(output, "mask", None) is not None


def _features(output: Any) -> Any:
    """A model's own, or of a transformers classifier the last layer's state of the first token.

    The pooler's tanh has not flattened that state yet.
    """
    found = getattr(output, "features", None)
    states = getattr(output, "hidden_states", None)
    return states[-1][:, 0] if found is None and states else found


def _with_states(model: Any) -> dict[str, Any]:
    """Models of transformers return the states of their layers when asked; the package's own have features anyway."""
    return {"output_hidden_states": True} if hasattr(getattr(model, "config", None), "output_hidden_states") else {}


# float [B, C]
register_kind(
    OutputKind("logits", "classification", lambda output: None if _of_tagger(output) else output.logits, top_k=True)
)
# float [B, F]: the pooled vector that reaches the classifier
register_kind(OutputKind("features", "classification", _features, options=_with_states))
# float [B, N, T]: what a tagger's CRF or softmax decides by
register_kind(
    OutputKind("emissions", "tagging", lambda output: output.logits if _of_tagger(output) else None, per_token=True)
)
# float [B, N, T]: the probability of each tag of a character (a student's, while it trains, are their logarithms)
register_kind(
    OutputKind(
        "marginals",
        "tagging",
        lambda output: output.marginals.exp() if _of_tagger(output) else None,
        per_token=True,
        options=lambda model: {"marginals": True},
    )
)

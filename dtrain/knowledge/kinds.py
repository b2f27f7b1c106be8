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
        task: the task whose losses may ask for it, as `tasks/rules.py` names it, beside those that share it; None: those
            of every task.
        pick: the tensor in a model's output, of any float type; None where the model has none.
        per_token: a vector for each character of a row, or each token that it is to write, [B, N, T]; else one for each row, [B, width].
        stored: whether the knowledge store may hold it (as float16 or float32; losses read float32).
        top_k: whether the store may keep the k largest numbers of each row, or of each part of one, alone
            (`knowledge.top_k`).
        scores: of a kind that is texts which a model writes, the scores of its candidates, float [B, k], the best first;
            `pick` then gives the candidates' tokens, int64 [B, k, L], -1 behind their ends.
        options: the arguments that make a model return it.
        inside: it is taken inside a model's transformer by `models/inside.py`, and not picked from what the model
            returns. Such an output is asked for by `at_layer`, layer by layer, and is of one teacher at a time.
        first_layer: for those inside: the first layer that has it; layer 0 is the embeddings' output.
        last_layer: for those inside: the last layer that has it; None: the model's last.
    """

    name: str
    task: str | None
    pick: Callable[[Any], Any]
    per_token: bool = False
    stored: bool = True
    top_k: bool = False
    scores: Callable[[Any], Any] | None = None
    options: Callable[[Any], Mapping[str, Any]] = field(default=_no_options)
    inside: bool = False
    first_layer: int = 1
    last_layer: int | None = None


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
    own = [kind.name for kind in _KINDS.values() if _is_of(kind, task) and kind.name not in shared]
    return [name for name in [*shared, *own] if find_kind(name).stored or not stored]


def _is_of(kind: OutputKind, task: str | None) -> bool:
    return task is None or kind.task in (None, task)


def is_inside(name: str) -> bool:
    """Whether this is the name of a kind that is taken inside a model."""
    return name in _KINDS and _KINDS[name].inside


def at_layer(kind: str, layer: int) -> str:
    """By which name a kind from inside a model is asked for, and handed on: `hidden_states/3`."""
    return f"{kind}/{layer}"


def layer_of(name: str) -> tuple[str, int] | None:
    """The kind and the layer of a name that `at_layer` gave; None for any other name."""
    kind, slash, layer = name.partition("/")
    return (kind, int(layer)) if slash else None


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
# float [B, N, F]: a tagger's features of each character, which its classifier is a linear map of
register_kind(
    OutputKind(
        "token_features", "tagging", lambda output: output.states if _of_tagger(output) else None, per_token=True
    )
)

# float [B, T, V]: an encoder-decoder's, of the T tokens of a target, each given those before it
register_kind(
    OutputKind(
        "token_logits",
        "seq2seq",
        lambda output: output.logits,
        per_token=True,
        top_k=True,
        options=lambda model: {"use_cache": False} if hasattr(model, "generate") else {},
    )
)

# int64 [B, k, L]: what an encoder-decoder writes by a beam, the k best, and the score of each
register_kind(OutputKind("sequences", "seq2seq", lambda output: output.tokens, scores=lambda output: output.scores))

# float [M, V]: scores over the vocabulary at the M masked positions of rows of plain text, computed beside the student
register_kind(OutputKind("vocabulary", "plain_text", lambda output: output.vocabulary, stored=False))


# --- inside a transformer, computed beside the student and never stored ------------------------------
# [B, N, ...] of the N tokens of the longest row; what stands at padded positions is finite and means nothing.


def _register_inside(name: str, first_layer: int = 1, last_layer: int | None = None) -> None:
    register_kind(
        OutputKind(
            name,
            None,
            lambda output: None,
            stored=False,
            inside=True,
            first_layer=first_layer,
            last_layer=last_layer,
        )
    )


# float [B, N, H]: the output of the embeddings, normalised, which goes into the first layer
_register_inside("embeddings", first_layer=0, last_layer=0)
# float [B, N, H]: the output of a layer; of layer 0 the embeddings
_register_inside("hidden_states", first_layer=0)
# float [B, heads, N, H / heads]: what a layer's attention reads
_register_inside("queries")
_register_inside("keys")
_register_inside("values")
# float [B, heads, N, N]: q_i . k_j / sqrt(H / heads), before the softmax; NEZHA's with their relative term
_register_inside("attention_scores")
# float [B, N, H]: of a row's cross-entropy with its label, by the embeddings' output; of teachers alone
_register_inside("embedding_gradients", first_layer=0, last_layer=0)

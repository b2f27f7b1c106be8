"""The kinds of output that students may learn from: each is one registered entry.

The store, the needs of losses, the recipe's `knowledge.outputs` and the stage `precompute` follow from the registry. To add
a kind from outside the package, call `register_kind`, and write losses that read it:

    register_kind(OutputKind("confidence", "classification", lambda output: output.logits.amax(1, keepdim=True)))

Each kind names the task that it was made for; other kinds of task may list it, too (`TaskRules.outputs`).

Recipes are checked with the registry, so this module imports nothing of the package and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def _no_options(model: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class OutputKind:
    """One kind of output. Losses ask for the student's by its name, and for the teachers' by `teachers.` and its name.

    Attributes:
        name: its name in recipes, and the name of the store's column.
        task: the task whose losses may ask for it, as named in `tasks/rules.py`, beside the tasks that share it; None: every
            task.
        pick: gives the tensor in a model's output, of any float dtype; None if the model has none.
        per_token: whether it is a vector for each character of a row, or for each token of its target, [B, N, T]; else it is
            one for each row, [B, width].
        stored: whether the knowledge store may hold it (as float16 or float32; losses read float32).
        top_k: whether the store may keep only the k largest numbers of each row, or of each token (`knowledge.top_k`).
        scores: for a kind that is texts written by the model: gives the scores of its candidates, float [B, k], the best
            first; `pick` then gives the candidates' tokens, int64 [B, k, L], with -1 after their ends.
        options: gives the keyword arguments with which a model returns it.
        inside: whether it is taken inside a model's transformer by `models/inside.py`, and not picked from what the model
            returns. Such an output is asked for layer by layer (`at_layer`), and of one teacher at a time.
        first_layer: for kinds inside a model: the first layer that has it; layer 0 is the embeddings' output.
        last_layer: for kinds inside a model: the last layer that has it; None: the model's last.
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
    """Names of the kinds of a task, or of all, in the order of their registration; the first of a task is its default.

    Args:
        task: a task's name, as its rules give it.
        shared: names of kinds of other tasks that it uses, too (`TaskRules.outputs`); they come first.
        stored: leave out the kinds that a store cannot hold.
    """
    own = [kind.name for kind in _KINDS.values() if _is_of(kind, task) and kind.name not in shared]
    return [name for name in [*shared, *own] if find_kind(name).stored or not stored]


def _is_of(kind: OutputKind, task: str | None) -> bool:
    return task is None or kind.task in (None, task)


def is_inside(name: str) -> bool:
    """Whether `name` is that of a kind that is taken inside a model."""
    return name in _KINDS and _KINDS[name].inside


def at_layer(kind: str, layer: int) -> str:
    """The name of one layer's output of a kind inside a model, as `hidden_states/3`."""
    return f"{kind}/{layer}"


def layer_of(name: str) -> tuple[str, int] | None:
    """The kind and the layer of a name that `at_layer` gave; None for any other name."""
    kind, slash, layer = name.partition("/")
    return (kind, int(layer)) if slash else None


def _of_tagger(output: Any) -> bool:
    return getattr(output, "mask", None) is not None


def _features(output: Any) -> Any:
    """A model's own features, or, for a classifier of transformers, the last layer's state of the first token.

    That is the state before the pooler, whose tanh would flatten it.
    """
    found = getattr(output, "features", None)
    states = getattr(output, "hidden_states", None)
    return states[-1][:, 0] if found is None and states else found


def _with_states(model: Any) -> dict[str, Any]:
    """Models of transformers return the states of their layers when asked to; those of dtrain always return features."""
    return {"output_hidden_states": True} if hasattr(getattr(model, "config", None), "output_hidden_states") else {}


# float [B, C]
register_kind(
    OutputKind("logits", "classification", lambda output: None if _of_tagger(output) else output.logits, top_k=True)
)
# float [B, F]: the pooled vector that reaches the classifier
register_kind(OutputKind("features", "classification", _features, options=_with_states))
# float [B, N, T]: the scores of tags that a tagger's CRF or softmax reads
register_kind(
    OutputKind("emissions", "tagging", lambda output: output.logits if _of_tagger(output) else None, per_token=True)
)
# float [B, N, T]: the probability of each tag of a character (in training, a student gives their logarithms)
register_kind(
    OutputKind(
        "marginals",
        "tagging",
        lambda output: output.marginals.exp() if _of_tagger(output) else None,
        per_token=True,
        options=lambda model: {"marginals": True},
    )
)
# float [B, N, F]: a tagger's features of each character, which its linear classifier reads
register_kind(
    OutputKind(
        "token_features", "tagging", lambda output: output.states if _of_tagger(output) else None, per_token=True
    )
)

# float [B, T, V]: the logits of an encoder-decoder for the T tokens of a target, each given those before it
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

# int64 [B, k, L]: the k best texts that an encoder-decoder finds by beam search, with the score of each
register_kind(OutputKind("sequences", "seq2seq", lambda output: output.tokens, scores=lambda output: output.scores))

# float [M, V]: scores over the vocabulary at the M masked positions of rows of plain text, computed beside the student
register_kind(OutputKind("vocabulary", "plain_text", lambda output: output.vocabulary, stored=False))


# --- inside a transformer, computed beside the student and never stored ------------------------------
# [B, N, ...] of the N tokens of the longest row; values at padded positions are finite and mean nothing.


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
# float [B, heads, N, H / heads]: the inputs of a layer's attention
_register_inside("queries")
_register_inside("keys")
_register_inside("values")
# float [B, heads, N, N]: q_i . k_j / sqrt(H / heads), before the softmax; NEZHA's with their relative term
_register_inside("attention_scores")
# float [B, N, H]: the gradient of a row's cross-entropy with its label by the embeddings' output; only of teachers
_register_inside("embedding_gradients", first_layer=0, last_layer=0)

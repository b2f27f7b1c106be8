"""What each kind of task allows in a recipe, and what it does where the recipe leaves it open.

Recipes are checked by these rules, so this module imports nothing of the package: no torch, and no other room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TaskRules:
    """The rules of one value of `data.task`. The first of its metrics is the default.

    Attributes:
        name: the task as losses know it; pairs of texts are classified.
        models: types of models that are for it, beside the architectures that say so themselves.
        losses: the default loss on labels, and the one on teachers' outputs.
        weightings: the ways to weigh several teachers that its losses have.
        formats: of its files.
        excluded: keys of the recipe's sections that are not for it.
        two_texts: whether a row is a pair of texts.
        tags: whether a row has a tag a character: then long texts are cut into pieces of `max_length`, so that the
            rows themselves depend on it, and `labels` are types of entities.
        split: the shares of validation and test rows that are cut off the training rows where no file is named.
    """

    name: str
    metrics: tuple[str, ...]
    losses: tuple[str, str]
    weightings: tuple[str, ...]
    formats: tuple[str, ...]
    models: tuple[str, ...] = ()
    excluded: frozenset[str] = frozenset()
    two_texts: bool = False
    tags: bool = False
    split: tuple[float, float] = (0.1, 0.0)


_CLASSIFICATION = TaskRules(
    name="classification",
    metrics=("accuracy", "f1", "f1_weighted", "loss"),
    losses=("cross_entropy", "soft_targets"),
    weightings=("average", "fixed", "confidence", "entropy", "gradient"),
    formats=("auto", "jsonl", "tsv", "csv", "parquet", "lines", "dataset"),
)
_RULES = {
    "classification": _CLASSIFICATION,
    "pairs": replace(_CLASSIFICATION, two_texts=True),
    "tagging": TaskRules(
        name="tagging",
        metrics=("f1", "f1_macro", "f1_weighted", "accuracy", "loss"),
        losses=("tag_likelihood", "marginal_matching"),
        weightings=("average", "fixed"),
        formats=("auto", "conll", "jsonl", "lines"),
        excluded=frozenset({"augment", "label_smoothing", "tolerance", "noisy", "peers", "top_k"}),
        tags=True,
        split=(0.1, 0.2),  # 7:1:2, as entity corpora without splits are cut
    ),
}


def task_names() -> list[str]:
    """The values that `data.task` may have."""
    return list(_RULES)


def rules_of(task: str) -> TaskRules:
    """The rules for a value of `data.task`."""
    return _RULES[task]


def register_rules(task: str, rules: TaskRules) -> None:
    """Let recipes have a task of this name."""
    if task in _RULES:
        raise ValueError(f"task {task!r} is registered twice")
    _RULES[task] = rules

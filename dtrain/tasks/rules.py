"""What each kind of task allows in a recipe, and its defaults.

Recipes are checked by these rules before anything heavy is loaded, so this module imports neither torch nor any other
module of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class TaskRules:
    """The rules of one value of `data.task`.

    Attributes:
        name: the task's name in the registries of losses and kinds of output; `pairs` is `classification` there.
        metrics: the scores that models can be chosen by; the first is the default.
        losses: the default loss on labels, and the default loss on teachers' outputs.
        weightings: the weightings of several teachers that its losses support.
        formats: the allowed values of `data.format`.
        needs: what its losses may read besides the kinds of output, with a description of each; see also
            `COMMON_NEEDS`. `Task.collate` and `Task.ask` supply them by these names.
        gold: the needs that come from the labels. A loss that reads one of them is left out for rows without a label,
            unless it reads `labelled` as well.
        outputs: kinds of output (`knowledge/kinds.py`) registered for other tasks that this task has, too. The first is
            stored where no loss reads any.
        models: types of models for this task, in addition to the architectures that name the task themselves.
        excluded: keys and features of the recipe that cannot be used with this task.
        keys: keys of `data` that only this task, and others that list them here, may have.
        two_texts: whether a row is a pair of texts; None: it is one where `data.columns.text_b` is set.
        least_labels: the least number of labels; 0: the task has no label map, so the recipe may not name labels.
        logits: the meaning of its models' logits, on which some losses depend: `classes` of one softmax, `labels` with
            a sigmoid each, or a `number`; empty for other tasks.
        tags: whether each character of a row has a tag. Then long texts are cut into pieces of at most `max_length`
            tokens, so that the rows themselves depend on `max_length`, and `labels` are entity types.
        writes: whether a row's label is a text that models generate.
        split: the shares of validation and test rows that are split off the training rows where the recipe names no
            file for these parts.
    """

    name: str
    metrics: tuple[str, ...]
    losses: tuple[str, str]
    weightings: tuple[str, ...]
    formats: tuple[str, ...]
    needs: Mapping[str, str] = field(default_factory=dict)
    gold: frozenset[str] = frozenset()
    outputs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    excluded: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    two_texts: bool | None = False
    least_labels: int = 2
    logits: str = ""
    tags: bool = False
    writes: bool = False
    split: tuple[float, float] = (0.1, 0.0)


# What the losses of every task may read; B is the number of rows.
COMMON_NEEDS = {
    "labelled": "bool [B]: whether the row has a label",
    "taught": "bool [B]: whether all teachers of the term have seen the row; None: all have seen every row",
    "parallel": "bool [B]: whether the row has further sides; False where rows have none",
    "progress": "a number in [0, 1): the share of all steps that are done",
    "all_rows": "which of these rows count, and a function that puts rows of all ranks together (losses/over_rows.py)",
    "token_mask": "bool [B, N]: the tokens of a row as the model reads it, [CLS] and [SEP] included",
}

_CLASSIFICATION = TaskRules(
    name="classification",
    metrics=("accuracy", "f1", "f1_weighted", "loss"),
    losses=("cross_entropy", "soft_targets"),
    weightings=("average", "fixed", "confidence", "entropy", "gradient"),
    formats=("auto", "jsonl", "tsv", "csv", "parquet", "lines", "dataset"),
    needs={
        "exits": "float [E, B, C]: logits of every exit, the last one's are `logits`",
        "labels": "int64 [B], in [0, C) also where there is no label",
    },
    gold=frozenset({"labels"}),
    logits="classes",
)
# Keys and features that treat logits as those of a softmax over classes.
_NO_CLASSES = frozenset({"label_smoothing", "class_weights", "tolerance", "noisy", "peers", "top_k"})
_RULES = {
    "classification": _CLASSIFICATION,
    "pairs": replace(_CLASSIFICATION, two_texts=True),
    "regression": TaskRules(
        name="regression",
        metrics=("pearson", "spearman", "loss"),
        losses=("squared_error", "logit_regression"),
        weightings=("average", "fixed"),
        formats=_CLASSIFICATION.formats,
        needs={"numbers": "float [B]: the rows' numbers, standardised where `data.standardize` says so"},
        gold=frozenset({"numbers"}),
        outputs=("logits", "features"),
        logits="number",
        excluded=_NO_CLASSES,
        keys=frozenset({"standardize"}),
        two_texts=None,
        least_labels=0,
    ),
    "multi_label": TaskRules(
        name="multi_label",
        metrics=("f1", "f1_macro", "f1_weighted", "exact_match", "loss"),
        losses=("binary_cross_entropy", "soft_label_sets"),
        weightings=("average", "fixed"),
        formats=_CLASSIFICATION.formats,
        needs={"label_sets": "float [B, C]: 1 for a label that the row has, else 0"},
        gold=frozenset({"label_sets"}),
        outputs=("logits", "features"),
        logits="labels",
        excluded=_NO_CLASSES,
        keys=frozenset({"separator", "threshold"}),
        two_texts=None,
        least_labels=1,
    ),
    "tagging": TaskRules(
        name="tagging",
        metrics=("f1", "f1_macro", "f1_weighted", "accuracy", "loss"),
        losses=("tag_likelihood", "marginal_matching"),
        weightings=("average", "fixed"),
        formats=("auto", "conll", "jsonl", "lines"),
        needs={
            "nll": "float [B]: -log p(gold tags), as the model decides: CRF or softmax",
            "mask": "bool [B, N]: the characters of a row, of which the longest has N",
        },
        gold=frozenset({"nll"}),
        least_labels=1,
        excluded=frozenset({"augment", "label_smoothing", "class_weights", "tolerance", "noisy", "peers", "top_k"})
        | frozenset({"domain_adversary"}),
        tags=True,
        split=(0.1, 0.2),  # 7:1:2, the usual split of entity corpora that come without one
    ),
    "seq2seq": TaskRules(
        name="seq2seq",
        metrics=("bleu", "chrf", "rouge_l", "loss"),
        losses=("token_cross_entropy", "word_level"),
        weightings=("average", "fixed"),
        formats=_CLASSIFICATION.formats,
        needs={
            "target_tokens": "int64 [B, T]: the tokens that are to be written, and any that exists beyond a row's end",
            "target_mask": "bool [B, T]: the tokens of a row's target, of which the longest of these rows has T",
            "known_prefix": "bool [B]: whether what is stored of a row's teachers is of this very target",
        },
        gold=frozenset({"target_tokens"}),
        excluded=frozenset({"augment", "class_weights", "tolerance", "noisy", "peers", "adversarial"})
        | frozenset({"domain_adversary"}),
        keys=frozenset({"bleu", "targets"}),
        least_labels=0,
        writes=True,
    ),
}


# Rows of plain text in a phase of a student. This is no value of `data.task`, but losses are registered for it.
PLAIN_TEXT = TaskRules(
    name="plain_text",
    metrics=("loss",),
    losses=("mlm", "vocabulary_kl"),
    weightings=("average", "fixed"),
    formats=(),
    needs={
        "masked_labels": "int64 [M]: the tokens that stood at the M masked positions of all rows",
        "masked_rows": "int64 [M]: in which of the B rows each masked position is",
    },
)


def task_names() -> list[str]:
    """The allowed values of `data.task`."""
    return list(_RULES)


def rules_of(task: str) -> TaskRules:
    """The rules for a value of `data.task`."""
    return _RULES[task]


def keys_of_others(task: str) -> set[str]:
    """Keys of `data` that only other tasks may have."""
    return {key for rules in _RULES.values() for key in rules.keys} - rules_of(task).keys


def loss_tasks() -> dict[str, TaskRules]:
    """Rules by `name`, under which losses are registered; of several tasks with one name, those of the first."""
    found: dict[str, TaskRules] = {}
    for rules in (*_RULES.values(), PLAIN_TEXT):
        found.setdefault(rules.name, rules)
    return found


def register_rules(task: str, rules: TaskRules) -> None:
    """Allow this value of `data.task` in recipes.

    Raises:
        ValueError: the name is taken.
    """
    if task in _RULES:
        raise ValueError(f"task {task!r} is registered twice")
    _RULES[task] = rules

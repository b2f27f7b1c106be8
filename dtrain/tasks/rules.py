"""What each kind of task allows in a recipe, and what it does where the recipe leaves it open.

Recipes are checked by these rules, so this module imports nothing of the package: no torch, and no other room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class TaskRules:
    """The rules of one value of `data.task`. The first of its metrics is the default.

    Attributes:
        name: the task as losses know it; pairs of texts are classified.
        models: types of models that are for it, beside the architectures that say so themselves.
        losses: the default loss on labels, and the one on teachers' outputs.
        needs: what its losses may ask for beside the kinds of output, each with what it is; see `COMMON_NEEDS`. What the
            names stand for is given by its `Task.collate` and `Task.outputs`.
        gold: the needs that come from the labels: a row without a label lacks the losses that read one of them, but for
            those that read `labelled` as well.
        outputs: kinds of output (`knowledge/kinds.py`) that it shares with the tasks they were registered for; the
            first is what is stored where no loss reads any.
        weightings: the ways to weigh several teachers that its losses have.
        formats: of its files.
        excluded: keys of the recipe's sections that are not for it.
        keys: keys of `data` that are for it and no other task, but for those that name them, too.
        two_texts: whether a row is a pair of texts; None: where `data.columns.text_b` names the second one.
        least_labels: how many labels there are at least; 0: a row has none, and the recipe names none.
        logits: what its models' logits are, which some losses are particular about: `classes` of a softmax over them,
            `labels` each with a sigmoid of its own, a `number`.
        tags: whether a row has a tag a character: then long texts are cut into pieces of `max_length`, so that the
            rows themselves depend on it, and `labels` are types of entities.
        writes: whether a row's label is a text, which models write.
        split: the shares of validation and test rows that are cut off the training rows where no file is named.
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


# What the losses of every task may ask for; B is the number of rows.
COMMON_NEEDS = {
    "labelled": "bool [B]: whether the row has a label",
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
# What takes logits for those of a softmax over classes.
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
        split=(0.1, 0.2),  # 7:1:2, as entity corpora without splits are cut
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


# What students are asked on rows of plain text, in a phase: no task of a recipe's, but one that losses are for.
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
    """The values that `data.task` may have."""
    return list(_RULES)


def rules_of(task: str) -> TaskRules:
    """The rules for a value of `data.task`."""
    return _RULES[task]


def keys_of_others(task: str) -> set[str]:
    """Keys of `data` that are for other tasks."""
    return {key for rules in _RULES.values() for key in rules.keys} - rules_of(task).keys


def loss_tasks() -> dict[str, TaskRules]:
    """The tasks as losses know them: rules by their `name`, those of the first `data.task` that has it."""
    found: dict[str, TaskRules] = {}
    for rules in (*_RULES.values(), PLAIN_TEXT):
        found.setdefault(rules.name, rules)
    return found


def register_rules(task: str, rules: TaskRules) -> None:
    """Let recipes have a task of this name."""
    if task in _RULES:
        raise ValueError(f"task {task!r} is registered twice")
    _RULES[task] = rules

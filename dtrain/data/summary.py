"""Lines about a recipe's rows, printed before training: files, counts, labels, and rows that are truncated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any

from dtrain.data.corpus import Corpus
from dtrain.data.problems import shown
from dtrain.data.sides import side_counts, sides_in_words
from dtrain.data.tokenizers import STUDENTS, tokenizer_specs
from dtrain.errors import counted
from dtrain.recipe.schema import Recipe
from dtrain.recipe.sides import side_of, vocabulary_of
from dtrain.tasks.rules import rules_of

UNKNOWN = 0.05  # share of unknown tokens above which it is reported
MOST_FILES = 5  # files of a part that are named
# A text of which WordPiece makes one token or more: characters other than Latin letters and digits are tokens alone.
PIECE = re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]")


def info_of(corpus: Corpus, sides: list[str]) -> dict[str, Any]:
    """The entries of `data.json` that can be given before the rows are prepared.

    Args:
        sides: names of the sides that rows have; empty where they have none.
    """
    return {
        "rows": corpus.counts,
        "labels": corpus.labels,
        **({"types": corpus.types, "scheme": corpus.scheme} if corpus.types else {}),
        **({"numbers": corpus.spread} if corpus.spread else {}),
        "label_counts": corpus.label_counts,
        **(side_counts(corpus, sides) if sides else {}),
        "remarks": corpus.remarks,
        "empty_texts": {
            part: sum(not text.strip() for text in chain(rows.text, rows.text_b)) for part, rows in corpus.parts.items()
        },
    }


def rows_in_words(info: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """A line for each part with its number of rows and files, and one with the labels or entity types of training."""
    counts: dict[str, int] = info.get("documents", info["rows"])
    unit = "documents" if "types" in info else "rows"
    width = max(len(f"{count:,}") for count in counts.values())
    lines = []
    for part, count in counts.items():
        files = recipe.data.paths(part)
        labelled = part == "transfer" or part in info["label_counts"]
        made_up = info.get("made_up", 0) if part == "transfer" else 0
        more = f", ... {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
        sources = [
            ", ".join(files[:MOST_FILES]) + more if files or part == "transfer" else f"cut from {recipe.data.key}.train"
        ]
        sources += [f"{made_up:,} made up from {recipe.data.key}.train"] * bool(made_up) + ["without labels"] * (
            not labelled
        )
        lines.append(f"{part:8}  {count:>{width},} {unit}  {', '.join(filter(None, sources))}")
    lines += sides_in_words(info, recipe)
    if "numbers" in info:
        return [*lines, numbers_in_words(info["numbers"])]
    if rules_of(recipe.data.task).writes:
        return lines
    found = info["label_counts"].get("train", {})
    names = shown([f"{name} {count:,}" for name, count in found.items()])
    what = (
        f"{counted(len(found), 'entity type')}, scheme {info['scheme']}" if "types" in info else f"{len(found)} labels"
    )
    return [*lines, f"{what}: {names}"]


def numbers_in_words(spread: Mapping[str, float]) -> str:
    """A line with the range, mean and standard deviation of the training rows' numbers (regression)."""
    return (
        f"numbers from {spread['least']:g} to {spread['greatest']:g}, mean {spread['mean']:.4g}, standard deviation "
        f"{spread['deviation']:.4g}"
    )


def remarks_in_words(info: Mapping[str, Any]) -> list[str]:
    """Remarks on the rows, a line each."""
    lines = list(info.get("remarks", ()))
    unseen = [label for label, count in info["label_counts"].get("train", {}).items() if not count]
    if unseen:
        lines.append(f"no training row has label {shown(map(repr, unseen))}")
    for part, count in info.get("empty_texts", {}).items():
        if count:
            lines.append(f"{part}: {counted(count, 'row')} with an empty text; kept, as the unknown token")
    return lines


def unknown_in_words(tokenizer: str, encoding: Mapping[str, Any]) -> str | None:
    """A warning where a given tokenizer reads more than `UNKNOWN` of the tokens as the unknown token, else None.

    Args:
        encoding: the content of `encoded.json`, which has this share if the tokenizer was not built from these rows.
    """
    share = encoding.get("unknown", 0.0)
    if share <= UNKNOWN:
        return None
    return (
        f"{tokenizer}: its tokenizer does not know {share:.0%} of the tokens of these rows, and the model cannot tell them "
        "from each other: take a pretrained model that was made for this language and script"
    )


def cut_in_words(cut: Mapping[str, int], rows: int, recipe: Recipe, about: str = "") -> str | None:
    """A line with the number of rows that are longer than `data.max_length`; None where no row is.

    Args:
        cut: the number of such rows by tokenizer.
        rows: the number of all rows.
        about: text in front of the numbers, where they are estimates.
    """
    found = [f"{about}{count:,} ({count / rows:.1%}) for {name}" for name, count in cut.items() if count]
    return f"cut at {recipe.data.key}.max_length {recipe.data.max_length}: {', '.join(found)}" if found else None


def estimated_cuts(corpus: Corpus, recipe: Recipe) -> dict[str, int]:
    """By tokenizer, an estimate of the number of rows that are longer than `data.max_length`.

    For the students' tokenizer the number of tokens is exact except for changes by normalisation; for a transformer's
    it is the smallest number that its tokenizer can make of the text. For seq2seq the limit holds for the source and
    for the target.
    """
    limit, pairs = recipe.data.max_length, recipe.data.columns.text_b is not None
    unit, writes = recipe.data.vocabulary.unit, rules_of(recipe.data.task).writes
    cuts = {}
    for name in tokenizer_specs(recipe):
        own = vocabulary_of(name)
        frame = int(pairs) if own == STUDENTS else 1 if writes else 2 + pairs
        kind = unit if own == STUDENTS else None

        def is_cut(texts: tuple[str, ...], frame: int = frame, kind: str | None = kind) -> bool:
            longest = frame + sum(map(len, texts))
            return longest > limit and frame + sum(_tokens(text, kind) for text in texts) > limit

        cuts[name] = sum(
            any(map(is_cut, zip(row))) if writes else is_cut(row)
            for row in _texts(corpus, side_of(name), writes=writes)
        )
    return cuts


def _texts(corpus: Corpus, side: str, *, writes: bool) -> Iterator[tuple[str, ...]]:
    """The texts of each row: those that a model reads together; with `writes`, the source and its target."""
    for rows in corpus.parts.values():
        targets: Iterable[str | None] = (target or "" for target in rows.target) if writes else repeat(None)
        if side:
            texts: Iterable[tuple[str, ...] | None] = ((own[side],) if side in own else None for own, _ in rows.sides)
        else:
            texts = zip(rows.text, rows.text_b, strict=True) if rows.text_b else ((text,) for text in rows.text)
        for own, target in zip(texts, targets, strict=False):
            if own is not None:
                yield own if target is None else (*own, target)


def _tokens(text: str, unit: str | None) -> int:
    if unit is None:
        return sum(1 for _ in PIECE.finditer(text))
    words = text.split()
    return len(words) if unit == "word" else len(" ".join(words))

"""Entity scores from counts by type, equal to seqeval's strict mode to the last digit.

Tags are BIOES numbers: 0 is O, and 1 + 4 * type + {0: B, 1: I, 2: E, 3: S} a position in an entity. An entity is a
single S, or B, any number of I, and E of one type. Any other sequence of tags (I after O, B without its E, a type
that changes inside) is no entity, as in `seqeval` with `mode="strict", scheme=IOBES`. Batches and ranks only exchange
the counts of hits, predicted and gold entities: int64 tensors that are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

B, I, E, S = range(4)  # noqa: E741  (the usual names of the prefixes)


class Entities(NamedTuple):
    """Entities of many rows, in the order of the text; int64 [entities] each, positions counted within the row."""

    row: np.ndarray
    type: np.ndarray
    start: np.ndarray
    end: np.ndarray  # exclusive


def entities(tags: np.ndarray, offsets: np.ndarray) -> Entities:
    """The entities of many rows at once.

    Args:
        tags: integer [all characters], the rows' BIOES numbers one after another.
        offsets: integer [N + 1]; row r is `tags[offsets[r] : offsets[r + 1]]` and may be empty.

    Raises:
        ValueError: a negative tag (an unlabelled character is -1), or offsets that do not cover the tags.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    kind, start, end = _chunks(np.asarray(tags), offsets)
    row = np.searchsorted(offsets, start, side="right") - 1
    return Entities(row, kind, start - offsets[row], end - offsets[row])


def spans(tags: np.ndarray) -> list[tuple[int, int, int]]:
    """(type, start, end exclusive) of every entity of one row with BIOES numbers `tags`, integer [characters]."""
    found = entities(tags, np.array([0, len(tags)]))
    return list(zip(found.type.tolist(), found.start.tolist(), found.end.tolist(), strict=True))


def count_entities(gold: np.ndarray, predicted: np.ndarray, offsets: np.ndarray, types: int) -> torch.Tensor:
    """By type, the hits (same row, type, start, end), predicted and gold entities: counts, int64 [types, 3] on the CPU.

    Args:
        gold, predicted: integer [all characters], rows as in `entities`.
        types: the number of types.

    Raises:
        ValueError: lengths that differ, a tag outside 0..4 * types, or offsets that do not cover the tags.
    """
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    offsets = np.asarray(offsets, dtype=np.int64)
    if gold.shape != predicted.shape:
        raise ValueError(f"gold {list(gold.shape)} and predicted {list(predicted.shape)} must both be [characters]")
    for name, tags in (("gold", gold), ("predicted", predicted)):
        if len(tags) and not 0 <= tags.min() <= tags.max() <= 4 * types:
            wrong = tags[(tags < 0) | (tags > 4 * types)][0]
            raise ValueError(f"{name} tag {wrong} is not in 0..{4 * types}")
    gold_type, gold_start, gold_end = _chunks(gold, offsets)
    type_, start, end = _chunks(predicted, offsets)
    # Entities of one sequence do not overlap, so that at most one begins at a position.
    _, g, p = np.intersect1d(gold_start, start, assume_unique=True, return_indices=True)
    hits = gold_type[g][(gold_type[g] == type_[p]) & (gold_end[g] == end[p])]
    columns = [np.bincount(kinds, minlength=types) for kinds in (hits, type_, gold_type)]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int64))


def entity_scores(counts: torch.Tensor, types: Sequence[str]) -> dict[str, float]:
    """Micro, macro and weighted scores of all entities.

    As seqeval with `zero_division=0`: a type that is neither among the gold nor among the predicted entities is left
    out of the means, and a ratio with denominator 0 is 0. (If no type occurs at all, seqeval's means are undefined;
    here they are 0.)

    Args:
        counts: int64 [types, 3], a sum of `count_entities`.
        types: names of the types. Means are summed in the order of the names, as in seqeval: with another order the
            last digit could differ.

    Returns:
        precision, recall, f1 over all entities; precision_macro, recall_macro, f1_macro, the means over types;
        f1_weighted by gold entities; and entities, the number of gold ones.
    """
    table = _table(counts, types)
    by_name = sorted(range(len(types)), key=lambda number: types[number])
    seen = table[[number for number in by_name if table[number, 1:].any()]]
    gold = seen[:, 2]
    (precision,), (recall,), (f1,) = _shares(table.sum(axis=0, keepdims=True))
    each = _shares(seen)
    macro = [float(np.average(values)) if len(values) else 0.0 for values in each]
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "precision_macro": macro[0],
        "recall_macro": macro[1],
        "f1_macro": macro[2],
        "f1_weighted": float(np.average(each[2], weights=gold)) if gold.any() else 0.0,
        "entities": int(gold.sum()),
    }


def per_type(counts: torch.Tensor, types: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and support (gold entities) by type, in the order of `types`."""
    table = _table(counts, types)
    rows = zip(types, *_shares(table), table[:, 2], strict=True)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in rows
    }


def _chunks(tags: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Type, start and end (exclusive) of every entity, int64, positions counted over all rows."""
    if (
        tags.ndim != 1
        or len(offsets) < 1
        or offsets[0] != 0
        or offsets[-1] != len(tags)
        or (np.diff(offsets) < 0).any()
    ):
        raise ValueError(f"offsets must rise from 0 to the number of tags, {list(tags.shape)}")
    if len(tags) and tags.min() < 0:
        raise ValueError(f"tag {tags.min()} is not a BIOES number; unlabelled characters have no entities")
    type_, place = (tags - 1) >> 2, (tags - 1) & 3  # O looks like S with type -1
    # Whether a character continues the entity of the character before it.
    goes_on = np.zeros(len(tags), dtype=bool)
    goes_on[1:] = (type_[1:] == type_[:-1]) & (place[:-1] <= I) & ((place[1:] == I) | (place[1:] == E))
    goes_on[offsets[:-1][offsets[:-1] < len(tags)]] = False
    # Characters that continue the one before form runs; a run that begins with B and ends with E is an entity.
    heads = np.flatnonzero(~goes_on)
    ends = np.flatnonzero((place == E) & goes_on)
    starts = heads[np.searchsorted(heads, ends, side="right") - 1]
    whole = place[starts] == B
    single = np.flatnonzero((place == S) & (tags > 0))
    start = np.concatenate([starts[whole], single])
    end = np.concatenate([ends[whole], single]) + 1
    order = np.argsort(start)
    start, end = start[order], end[order]
    return type_[start].astype(np.int64), start, end


def _table(counts: torch.Tensor, types: Sequence[str]) -> np.ndarray:
    if counts.shape != (len(types), 3):
        raise ValueError(f"counts {list(counts.shape)} must be [{len(types)} types, 3]")
    return counts.cpu().numpy()


def _shares(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, float64 [rows of the table]; 0 where nothing was predicted, or nothing is gold."""
    hits, predicted, gold = table.T
    precision, recall = _divide(hits, predicted), _divide(hits, gold)
    # Rounded in seqeval's order: the shorter 2 * hits / (predicted + gold) can differ in the last digit.
    return precision, recall, _divide(2 * precision * recall, precision + recall)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.where(whole == 0, 1, whole)  # where the whole is 0, so is the part

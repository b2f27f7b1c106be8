"""Answering any number of rows in blocks: a file and an iterator give the same blocks, and so the same answers.

A block is sorted by length and divided into batches, as in scoring. The blocks depend on the rows alone, and only one
block is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from typing import Any

from torch import nn

from dtrain.data import EncodedSplit
from dtrain.data.schemes import Span
from dtrain.errors import InputError
from dtrain.tasks.answers import Answers, Texts
from dtrain.training.workers import Workers

ROWS = 4096  # most rows of a block: enough that sorting by length saves padding, few enough for the memory
CHARACTERS = 1 << 21  # most characters of a block with more than one row


def blocks(
    texts: Iterable[str], texts_b: Iterable[str] | None = None, privileged: Iterable[list[Span]] | None = None
) -> Iterator[Texts]:
    """Texts, or pairs of texts, as blocks of rows whose ids are their positions from 0.

    Args:
        texts: the texts, or the first texts of pairs.
        texts_b: the second texts of pairs.
        privileged: annotations of each text, for a model that reads them.

    Raises:
        InputError: the arguments have different numbers of elements.
    """
    beside = None if privileged is None else iter(privileged)
    rows = zip(texts, strict=True) if texts_b is None else _pairs(texts, texts_b)
    start = 0
    for block in _cut(rows):
        places = list(range(start, start + len(block)))
        found = [] if beside is None else list(islice(beside, len(block)))
        if beside is not None and len(found) < len(block):
            raise InputError(f"row {start + len(found)}: has no annotations: give those of each text, [] for none")
        yield Texts(list(places), *_columns(block), places, found)
        start += len(block)
    if beside is not None and next(beside, None) is not None:
        raise InputError(f"row {start}: has annotations and no text: give as many of the one as of the other")


def blocks_of(texts: Texts) -> Iterator[Texts]:
    """The blocks, as `blocks` makes them, of rows that are in memory."""
    start = 0
    for block in _cut(zip(texts.text, texts.text_b, strict=True) if texts.text_b else zip(texts.text, strict=True)):
        yield texts[start : start + len(block)]
        start += len(block)


def _pairs(texts: Iterable[str], texts_b: Iterable[str]) -> Iterator[tuple[str, str]]:
    for place, (one, other) in enumerate(zip_longest(texts, texts_b)):
        if one is None or other is None:
            missing = "first" if one is None else "second"
            raise InputError(f"row {place}: has no {missing} text: give as many of the one as of the other")
        yield one, other


def _cut(rows: Iterable[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    block: list[tuple[str, ...]] = []
    size = 0
    for row in rows:
        more = sum(map(len, row))
        if block and (len(block) == ROWS or size + more > CHARACTERS):
            yield block
            block, size = [], 0
        size += more
        block.append(row)
    if block:
        yield block


def _columns(block: list[tuple[str, ...]]) -> tuple[list[str], list[str]]:
    return [row[0] for row in block], [row[1] for row in block if len(row) > 1]


def find_answers(
    answers: Answers, model: nn.Module, read: Callable[[Texts], EncodedSplit], found: Iterable[Texts], workers: Workers
) -> Iterator[Any]:
    """The model's answer to each row of the blocks, in order, on every rank.

    Args:
        read: a function that encodes texts for the model (`Answers.reader`).
        found: blocks of rows, the same on every rank.
    """
    for block in found:
        yield from answers.find(model, read(block), block, workers)

"""Synthetic transfer rows made from all training rows of a corpus, with worker processes where there are many.

A synthetic row is a function of the recipe's seed, the key of the training row that it is made from, and its number
among that row's synthetic rows, so that it does not depend on the number of workers.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import numpy as np
import xxhash

from dtrain.augment.rewrite import Lexicon, rewrite
from dtrain.augment.words import Word, cutter
from dtrain.data.columns import CODEC, TextColumn
from dtrain.data.corpus import Corpus
from dtrain.data.normalize import Normalizer
from dtrain.data.sources import Rows
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.runtime.machines import usable_cores

CHUNK = 512  # training rows that a worker gets at a time
MOST_WORKERS = 8
Pair = tuple[str, str | None]


def with_synthetic_rows(corpus: Corpus, data: Data, seed: int) -> Corpus:
    """Append synthetic rows to the transfer rows of a corpus: `data.augment.n_iter` attempts at each training row.

    For pairs, the attempts change the first text, the second, both, and so on in turn. A result is left out where it is
    empty, equals a training or transfer row, or was made before.

    Returns:
        The corpus that was given.

    Raises:
        InputError: the tagger is not installed, or there is no new row.
    """
    assert data.augment is not None
    train = corpus.parts["train"]
    worker = _Worker(data, seed)
    counts = Counter[Word]()
    for found in _everywhere(_count, worker, train):
        counts.update(found)
    worker.lexicon = Lexicon(counts)

    given = corpus.parts.get("transfer", Rows())
    normalize = Normalizer(data.normalize)
    seen = {
        _hash(*map(normalize, pair)) for rows in (train, given) for pair in zip(rows.text, *_second(rows), strict=True)
    }
    rows = given.take(np.arange(len(given)))
    target = next(name for name in ("label", "number", "several") if len(getattr(train, name)))
    for made in _everywhere(_make, worker, train):
        for index, number, (text, text_b) in made:
            found = _hash(text) if text_b is None else _hash(text, text_b)
            if found in seen:
                continue
            seen.add(found)
            key = f"{train.key[index]}~{number}"
            rows.append(text, key, train.file[index], train.line[index], text_b=text_b, **{target: None})
    if not len(rows):
        raise InputError(
            f"data.augment: no new row came of {data.augment.n_iter} attempts at each of {len(train):,} training rows"
        )
    numbers = np.full(len(rows), -1, dtype=np.int64)
    corpus.parts["transfer"], corpus.numbers["transfer"] = rows, numbers
    corpus.made_up = len(rows) - len(given)
    return corpus


def _hash(text: str, text_b: str = "") -> int:
    """A 128-bit hash of a row's text or texts: it takes a third of a text's memory, and collisions are negligible."""
    data = text.encode(**CODEC)
    return xxhash.xxh3_128_intdigest(b"%d:%b%b" % (len(data), data, text_b.encode(**CODEC)))


def _second(rows: Rows) -> list[TextColumn]:
    return [rows.text_b] if rows.text_b else []


class _Chunk(NamedTuple):
    """Consecutive training rows, the first of which is at position `first`."""

    first: int
    key: list[str]
    texts: list[tuple[str, ...]]  # one text, or two


def _chunks(train: Rows) -> Iterator[_Chunk]:
    columns = zip(train.key, zip(train.text, *_second(train), strict=True), strict=True)
    for first in range(0, len(train), CHUNK):
        key, texts = zip(*islice(columns, CHUNK), strict=True)
        yield _Chunk(first, list(key), list(texts))


@dataclass
class _Worker:
    """What a process needs to make synthetic rows."""

    data: Data
    seed: int
    lexicon: Lexicon | None = None

    def __post_init__(self) -> None:
        self.cut, self.blank = cutter(self.data)
        self.normalize = Normalizer(self.data.normalize)

    def __reduce__(self) -> tuple[type[_Worker], tuple[Any, ...]]:
        """A tagger cannot be pickled, so that each process creates its own."""
        return _Worker, (self.data, self.seed, self.lexicon)

    def words(self, texts: tuple[str, ...]) -> tuple[list[Word], list[Word] | None]:
        first, *second = [self.cut(self.normalize(text)) for text in texts]
        return first, second[0] if second else None


def _count(worker: _Worker, chunk: _Chunk) -> Counter[Word]:
    return Counter(word for texts in chunk.texts for words in worker.words(texts) if words for word in words)


def _make(worker: _Worker, chunk: _Chunk) -> list[tuple[int, int, Pair]]:
    spec, lexicon = worker.data.augment, worker.lexicon
    assert spec is not None and lexicon is not None
    made = []
    for index, (key, texts) in enumerate(zip(chunk.key, chunk.texts, strict=True), chunk.first):
        first, second = worker.words(texts)
        for number in range(spec.n_iter):
            random = Random(f"{worker.seed}/{key}/{number}")

            def text(words: list[Word], varied: bool, random: Random = random) -> str:
                chosen = rewrite(words, spec, lexicon, random) if varied else [word.text for word in words]
                return worker.blank.join(chosen).strip()

            pair: Pair = (
                (text(first, True), None)
                if second is None
                else (text(first, number % 3 != 1), text(second, number % 3 != 0))
            )
            if pair[0] and pair[1] != "":
                made.append((index, number, pair))
    return made


_worker: _Worker | None = None  # of a worker process


def _start(worker: _Worker) -> None:
    global _worker
    _worker = worker


def _run(task: Callable[[_Worker, _Chunk], Any], chunk: _Chunk) -> Any:
    assert _worker is not None
    return task(_worker, chunk)


def _everywhere(task: Callable[[_Worker, _Chunk], Any], worker: _Worker, train: Rows) -> Iterator[Any]:
    """Yield the results of `task(worker, chunk)` in the order of the training rows."""
    data = worker.data
    cores = usable_cores()
    workers = min(MOST_WORKERS, cores) if data.workers == "auto" else data.workers
    if workers == 1 or len(train) <= (2 * workers - 1) * CHUNK:
        yield from map(partial(task, worker), _chunks(train))
        return
    # Workers are not forked: locks that other threads hold (torch's, the process group's) would stay locked there.
    with multiprocessing.get_context("spawn").Pool(workers, _start, (worker,)) as pool:
        yield from pool.imap(partial(_run, task), _chunks(train))

"""Synthetic rows of a whole corpus, as its transfer rows, over worker processes where there are many.

A row is a function of the recipe's seed, the id of the training row that it is made of, and its number among that
row's: neither workers nor their number change it.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import numpy as np

from dtrain.augment.rewrite import Lexicon, rewrite
from dtrain.augment.words import Word, cutter
from dtrain.data.columns import TextColumn
from dtrain.data.corpus import Corpus
from dtrain.data.normalize import Normalizer
from dtrain.data.sources import Rows
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.runtime.machines import usable_cores

CHUNK = 512  # training rows
MOST_WORKERS = 8
Pair = tuple[str, str | None]


def with_synthetic_rows(corpus: Corpus, data: Data, seed: int) -> Corpus:
    """The corpus with `data.augment.n_iter` attempts at each training row behind its transfer rows.

    Of pairs the first text is varied, then the second, then both, and so on. What is a training or transfer row
    already, or was made before, is left out; so is a text without any word.

    Raises:
        InputError: the tagger is not installed.
    """
    assert data.augment is not None
    train = corpus.parts["train"]
    worker = _Worker(train, data, seed)
    chunks = [range(start, min(start + CHUNK, len(train))) for start in range(0, len(train), CHUNK)]
    counts = Counter[Word]()
    for found in _everywhere(_count, worker, chunks):
        counts.update(found)
    worker.lexicon = Lexicon(counts)

    given = corpus.parts.get("transfer", Rows())
    normalize = Normalizer(data.normalize)
    seen = {
        tuple(map(normalize, pair)) for rows in (train, given) for pair in zip(rows.text, *_second(rows), strict=True)
    }
    rows = given.take(np.arange(len(given)))
    target = next(name for name in ("label", "number", "several") if len(getattr(train, name)))
    for chunk in _everywhere(_make, worker, chunks):
        for index, number, (text, text_b) in chunk:
            pair = (text,) if text_b is None else (text, text_b)
            if pair in seen:
                continue
            seen.add(pair)
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


def _second(rows: Rows) -> list[TextColumn]:
    return [rows.text_b] if rows.text_b else []


@dataclass
class _Worker:
    """What a process needs."""

    train: Rows
    data: Data
    seed: int
    lexicon: Lexicon | None = None

    def __post_init__(self) -> None:
        self.cut, self.blank = cutter(self.data)
        self.normalize = Normalizer(self.data.normalize)

    def __reduce__(self) -> tuple[type[_Worker], tuple[Any, ...]]:
        """A tagger cannot be sent to a process; it has its own."""
        return _Worker, (self.train, self.data, self.seed, self.lexicon)

    def words(self, index: int) -> tuple[list[Word], list[Word] | None]:
        texts = [self.train.text[index], *(column[index] for column in _second(self.train))]
        first, *second = [self.cut(self.normalize(text)) for text in texts]
        return first, second[0] if second else None


def _count(worker: _Worker, chunk: range) -> Counter[Word]:
    return Counter(word for index in chunk for words in worker.words(index) if words for word in words)


def _make(worker: _Worker, chunk: range) -> list[tuple[int, int, Pair]]:
    spec, lexicon = worker.data.augment, worker.lexicon
    assert spec is not None and lexicon is not None
    made = []
    for index in chunk:
        first, second = worker.words(index)
        for number in range(spec.n_iter):
            random = Random(f"{worker.seed}/{worker.train.key[index]}/{number}")

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


def _run(task: Callable[[_Worker, range], Any], chunk: range) -> Any:
    assert _worker is not None
    return task(_worker, chunk)


def _everywhere(task: Callable[[_Worker, range], Any], worker: _Worker, chunks: list[range]) -> Iterator[Any]:
    """Results of `task(worker, chunk)` in the order of `chunks`."""
    data = worker.data
    cores = usable_cores()
    workers = min(MOST_WORKERS, cores) if data.workers == "auto" else data.workers
    if workers == 1 or len(chunks) < 2 * workers:
        yield from map(partial(task, worker), chunks)
        return
    # Not forked: this process has threads (torch's, the process group's), whose locks a fork would never see opened.
    with multiprocessing.get_context("spawn").Pool(workers, _start, (worker,)) as pool:
        yield from pool.imap(partial(_run, task), chunks)

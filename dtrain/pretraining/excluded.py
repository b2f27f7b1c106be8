"""What may not be pre-trained on: every text in the validation and test files, whatever their format."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from dtrain.data.conll import join_tokens, read_conll
from dtrain.data.files import EXCLUDED, HUB, SUFFIXES, Source, existing_file, find_sources, numbered_lines, resolve_path
from dtrain.data.normalize import Normalizer
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.errors import InputError
from dtrain.recipe.schema import Recipe


def excluded_sources(recipe: Recipe) -> list[Source]:
    """Those of `pretrain.corpus.exclude`, and the recipe's own validation and test files.

    Raises:
        InputError: where one is missing or empty; nothing of them is read.
    """
    assert recipe.pretrain is not None
    found: list[Source] = []
    problems = Problems()
    for name in recipe.pretrain.corpus.exclude:
        try:
            found.append(Source(EXCLUDED, name, _format_of(name)))
        except InputError as error:
            problems.add(str(error))
    try:
        found += [source for source in find_sources(recipe.data) if source.part in ("valid", "test")]
    except InputError as error:
        for problem in error.problems:
            problems.add(problem)
    problems.raise_if_any()
    return found


def _format_of(name: str) -> str:
    if name.startswith(HUB):
        return "hub"
    path = resolve_path(name)
    if path.is_dir() and (path / "state.json").is_file():
        return "dataset"
    return SUFFIXES.get(existing_file(name, f"pretrain.corpus.{EXCLUDED}").suffix.lower(), "lines")


def excluded_texts(sources: list[Source], normalizer: Normalizer) -> set[str]:
    """Every normalised text in `sources`, in any column: which one holds the text need not be said.

    What a label shares with a document is no loss.

    Raises:
        InputError: where a `datasets` folder or a hub data set cannot be read.
    """
    return {normalizer(text) for source in sources for text in _texts_of(source)} - {""}


def _texts_of(source: Source) -> Iterator[str]:
    # What is wrong with a line is told where the file is read as data; no document can equal it.
    problems = Problems()
    if source.format in ("dataset", "hub"):
        for _, record in read_records(source, True, 0, problems):
            yield from _strings(dict(record))
        return
    if source.format == "conll":
        for sentence in read_conll(source, 0, 0, False, problems):
            yield from (join_tokens(sentence.tokens)[0], *_joined(sentence.tokens))
    if source.format == "csv":
        for _, record in read_records(source, False, 0, problems):
            yield from _strings(dict(record))
    for _, line in numbered_lines(source.path, source.name, problems):
        yield from (line, *line.split("\t"))
        if line.lstrip().startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                yield from _strings(json.loads(line))


def _strings(value: Any) -> Iterator[str]:
    """Every text in a value of JSON; a list of texts as one, too, as token by token is how taggers' files hold them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inside in value.values():
            yield from _strings(inside)
    elif isinstance(value, list):
        if value and all(isinstance(inside, str) for inside in value):
            yield from _joined(value)
        for inside in value:
            yield from _strings(inside)


def _joined(tokens: list[str]) -> tuple[str, str]:
    return "".join(tokens), " ".join(tokens)

"""Texts that must not be pre-trained on: those of validation and test rows, whatever the format of their files."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from dtrain.data.conll import join_tokens, split_columns
from dtrain.data.corpus import parts_to_cut
from dtrain.data.files import EXCLUDED, HUB, SUFFIXES, Source, existing_file, resolve_path
from dtrain.data.lines import numbered_lines
from dtrain.data.normalize import Normalizer
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.data.sources import Rows
from dtrain.data.tables import table_rows
from dtrain.errors import InputError
from dtrain.recipe.schema import Recipe
from dtrain.tasks.corpus import find_sources, read_corpus

LINE_END = re.compile(r"\r\n|[\r\n]")


def excluded_sources(recipe: Recipe) -> list[Source]:
    """The files of `pretrain.corpus.exclude`, and the recipe's own validation and test files.

    Raises:
        InputError: a file is missing or empty; what is in the files is not looked at.
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
        for view in recipe.views():
            found += [source for source in find_sources(view.data) if source.part in ("valid", "test")]
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


def excluded_texts(recipe: Recipe, normalizer: Normalizer) -> set[str]:
    """Every normalised text of the excluded sources, and of rows that `data.split` cuts off the training files.

    The column that holds the text need not be named: all columns are excluded, and a document that equals a label is no
    loss. Each line of a text of several lines is excluded, too.

    Raises:
        InputError: a source cannot be read or holds no text, so that its rows could get into the corpus unnoticed.
    """
    problems = Problems()
    found: set[str] = set()
    for source in excluded_sources(recipe):
        texts = _normalized(_texts_of(source, problems), normalizer)
        if not texts and not problems:
            problems.add(f"{source.key}: {source.name}: holds no text")
        found |= texts
    problems.raise_if_any()
    for view in recipe.views():
        cut = parts_to_cut(view.data)
        if cut:
            parts = read_corpus(view.data, recipe.seed).parts
            found |= _normalized((t for part in cut if part in parts for t in _both(parts[part])), normalizer)
    return found


def _normalized(texts: Iterator[str], normalizer: Normalizer) -> set[str]:
    return {normalizer(piece) for text in texts for piece in {text, *lines_of(text)}} - {""}


def _both(rows: Rows) -> Iterator[str]:
    return chain(rows.text, rows.text_b)


def lines_of(text: str) -> list[str]:
    """The lines of a text: they end at a line feed, a carriage return or both. U+2028 and similar characters are text."""
    return LINE_END.split(text)


def _texts_of(source: Source, problems: Problems) -> Iterator[str]:
    if source.format in ("dataset", "hub", "parquet"):
        for _, record in read_records(source, True, 0, problems):
            yield from _strings(dict(record))
    elif source.format == "csv":
        for row in table_rows(source, problems):
            yield from row.columns
    elif source.format == "jsonl":
        yield from _json_texts(source, problems)
    else:
        yield from _line_texts(source, problems)


def _json_texts(source: Source, problems: Problems) -> Iterator[str]:
    """The texts of a file that is one JSON value, however it is laid out, or that has one JSON value on each line."""
    with contextlib.suppress(ValueError, RecursionError):
        yield from _strings(json.loads(source.path.read_text(encoding="utf-8-sig")))
        return
    for _, record in read_records(source, True, 0, problems):
        yield from _strings(dict(record))


def _line_texts(source: Source, problems: Problems) -> Iterator[str]:
    """The texts of a file of lines: each line, its columns between tabs, and the texts of a JSON object on it.

    A block between blank lines may be a document or a tagger's sentence, so its lines, and each of its columns, are also
    joined to one text.
    """
    block: list[str] = []
    blocks = source.format == "conll"
    for _, line in numbered_lines(source.path, source.name, problems, source.encoding):
        if line.strip():
            yield from (line, *line.split("\t"))
            if line.lstrip().startswith("{"):
                with contextlib.suppress(ValueError, RecursionError):
                    yield from _strings(json.loads(line))
            block.append(line)
        else:
            blocks = True
            yield from _block_texts(block)
            block = []
    if blocks:
        yield from _block_texts(block)


def _block_texts(lines: list[str]) -> Iterator[str]:
    yield from _joined(lines)
    rows = [split_columns(line) for line in lines]
    if len({len(row) for row in rows}) == 1:
        for column in zip(*rows, strict=True):
            yield from (join_tokens(list(column))[0], *_joined(list(column)))


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value. Lists of texts are also joined to one, as files for taggers hold a text token by token."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inside in value.values():
            yield from _strings(inside)
    elif isinstance(value, list):
        if value and all(isinstance(inside, str) for inside in value):
            yield from (join_tokens(value)[0], *_joined(value))
        for inside in value:
            yield from _strings(inside)


def _joined(tokens: list[str]) -> tuple[str, str]:
    return "".join(tokens), " ".join(tokens)

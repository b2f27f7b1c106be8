"""Reading documents with their entities from CoNLL files, JSON lines and plain lines; the map of entity types."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.data.columns import JsonColumn
from dtrain.data.conll import Sentence, join_tokens, read_conll, spread
from dtrain.data.corpus import Corpus
from dtrain.data.files import HUB, SUFFIXES, Source, resolve_path, suffix_of
from dtrain.data.ids import SeenIds, read_once_or_twice
from dtrain.data.labels import check_all_or_none, outside, read_label_file
from dtrain.data.lines import first_line
from dtrain.data.problems import Problems, RowError, shortened, shown
from dtrain.data.records import Record, missing_columns
from dtrain.data.schemes import Span, check_prefix, outside_entities, read_spans, tag_names
from dtrain.data.sources import RecordReader, Rows, check_columns, text_of
from dtrain.errors import InputError, suggest
from dtrain.recipe.data import Columns, Data
from dtrain.tasks.reading import Reading
from dtrain.tasks.tagging.privileged import PrivilegedColumn, annotated, number_types, of_conll, scheme_of
from dtrain.tasks.tagging.scheme import TagFile, find_scheme, read_among_strays
from dtrain.tasks.tagging.spans import EndFinder, Entities, GivenSpan, given_spans


class DocumentReading(Reading):
    """Reading for task `tagging`. Where no file has tags and the recipe names no scheme, the scheme is `bio`."""

    def suffixes(self, data: Data) -> set[str]:
        """As the base class; none: CoNLL files may have any suffix, so a folder does not tell which files are meant."""
        return set()

    def format_of(self, part: str, name: str, data: Data) -> str:
        """As the base class; `auto` is JSON lines by the suffix, else CoNLL.

        A .txt for transfer is read as plain lines unless its first line ends with a tag.
        """
        path = resolve_path(name)
        if name.startswith(HUB) or path.is_dir():
            what = "a hub data set" if name.startswith(HUB) else "a folder"
            raise InputError(
                f"{name}: is {what}; task 'tagging' reads files (CoNLL or JSON lines), or a pattern of them"
            )
        if path.stat().st_size == 0:
            raise InputError(f"{name}: the file is empty")
        by_suffix = "jsonl" if SUFFIXES.get(suffix_of(path)) == "jsonl" else None
        if part == "transfer":
            plain = data.format == "lines" or (suffix_of(path) == ".txt" and not _ends_with_tag(path, data))
            return by_suffix or ("lines" if plain else "conll")
        if data.format == "lines":
            raise InputError(f"{name}: plain lines hold no labels; data.format 'lines' is for transfer files only")
        return (by_suffix or "conll") if data.format == "auto" else data.format

    def read(
        self, data: Data, sources: list[Source], files: list[str], problems: Problems, *, keep_empty: bool = False
    ) -> Corpus:
        _check_column_names(data, sources, problems)
        problems.raise_if_any()
        columns = data.columns
        sentences = {
            number: read_conll(
                source, columns.text, columns.label, source.part != "transfer", problems, columns.privileged
            )
            for number, source in enumerate(sources)
            if source.format == "conll"
        }
        problems.raise_if_any()
        tagged = [TagFile(sources[number].name, found) for number, found in sentences.items()]
        corpus = Corpus({}, files, scheme=data.scheme if data.scheme != "auto" else find_scheme(tagged))

        def read_all(seen: SeenIds) -> list[SpanReader]:
            corpus.parts = {}
            readers = []
            for number, source in enumerate(sources):
                rows, file = corpus.parts.setdefault(source.part, Rows()), files.index(source.name)
                if number in sentences:
                    strict = data.scheme != "auto"
                    SentenceReader(source, file, corpus.scheme or "", strict, problems).read(sentences[number], rows)
                    if columns.privileged is not None:
                        beside = scheme_of([(source.name, of_conll(sentences[number]))], data)
                        for spans in annotated(sentences[number], source.name, beside, strict, problems):
                            rows.privileged.append(spans)
                    continue
                reader = SpanReader(data, source, file, rows, seen, problems)
                reader.keep_empty = keep_empty
                reader.read()
                readers.append(reader)
            return readers

        readers = read_once_or_twice(read_all, problems)
        sentences.clear()
        if columns.id is not None and not any(reader.has_id for reader in readers) and not problems:
            problems.add(f"data.columns.id: no file has a column {columns.id!r}")
        corpus.span_end = _settle_spans(readers, data, problems)
        return corpus

    def number_labels(self, corpus: Corpus, data: Data, problems: Problems) -> None:
        corpus.types = _entity_types(data, corpus.parts["train"])
        corpus.labels = tag_names(corpus.types)
        corpus.numbers = _check_entities(data, corpus, problems)
        if data.columns.privileged is not None:
            number_types(corpus, problems)


def _ends_with_tag(path: Path, data: Data) -> bool:
    """Whether the first non-empty line looks like one of a CoNLL file."""
    columns = first_line(path, data.encoding).split()
    return len(columns) > 1 and bool(re.fullmatch("O|[A-Z]-.+", columns[-1]))


def _check_column_names(data: Data, sources: list[Source], problems: Problems) -> None:
    """Add problems for columns of the wrong kind: JSON lines have names, CoNLL files have numbers."""
    for source in sources:
        if source.format != "conll":
            check_columns(data, source, problems)
        if source.format == "lines" and data.columns.privileged is not None:
            problems.add(
                f"{source.key}: {source.name}: plain lines hold no annotations, and data.columns.privileged names some "
                f"({data.columns.privileged!r}); give JSON lines"
            )
        elif source.format == "conll" and isinstance(data.columns.privileged, str):
            problems.add(
                f"data.columns.privileged: {data.columns.privileged!r} is a name, and the columns of {source.name} (CoNLL) have "
                "numbers: give its number (from 0), or JSON lines throughout",
                "data.columns.privileged",
            )
    if all(source.format == "conll" for source in sources):
        labelled = any(source.part != "transfer" for source in sources)  # else no label is read
        for name in ("text", "label") if labelled else ("text",):
            column = getattr(data.columns, name)
            if isinstance(column, str) and column != Columns.model_fields[name].default:
                problems.add(f"data.columns.{name}: {column!r} is a name; give the number (from 0) of a CoNLL column")


# --- tags -----------------------------------------------------------------------------------------


class SentenceReader:
    """Turns the sentences of one CoNLL file into documents.

    Where the recipe names the scheme (`strict`), tags of another scheme are problems; else they are read as O, with a
    remark.
    """

    def __init__(self, source: Source, file: int, scheme: str, strict: bool, problems: Problems) -> None:
        self.source, self.file, self.scheme, self.strict, self.problems = source, file, scheme, strict, problems

    def read(self, sentences: Sequence[Sentence], rows: Rows) -> None:
        """Append the sentences to `rows`."""
        name = self.source.name
        if not sentences and not self.problems:
            self.problems.add(f"{self.source.key}: {name}: holds no rows")
        lost = strays = 0
        first_lost = first_stray = ""
        for sentence in sentences:
            text, starts = join_tokens(sentence.tokens)
            spans: list[Span] | None = None
            if sentence.tags is not None:
                try:
                    found, foreign = self._entities(sentence.tags)
                except ValueError:
                    self._add_wrong_tags(sentence, sentence.tags)
                    continue
                bad = outside_entities(sentence.tags, found)
                if bad:
                    first_lost = first_lost or f"{name}:{sentence.line + bad[0]}: {sentence.tags[bad[0]]!r}"
                if foreign:
                    place = foreign[0]
                    first_stray = first_stray or f"{name}:{sentence.line + place}: {sentence.tags[place]!r}"
                lost, strays = lost + len(bad), strays + len(foreign)
                spans = spread(found, sentence.tokens, starts)
            rows.append(text, None, self.file, sentence.line, spans=spans)
        if strays:
            self.problems.remark(
                f"{name}: {strays:,} tag(s) do not belong to scheme {self.scheme}, which fits the others (first: {first_stray}); "
                f"they and the incomplete entities around them, {lost:,} tag(s) in all, are read as O"
            )
        elif lost:
            what = f"{lost:,} tag(s) are part of no complete entity in scheme {self.scheme} and are read as O ({first_lost})"
            self.problems.remark(f"{name}: {what}")

    def _entities(self, tags: list[str]) -> tuple[list[Span], list[int]]:
        return (read_spans(tags, self.scheme), []) if self.strict else read_among_strays(tags, self.scheme)

    def _add_wrong_tags(self, sentence: Sentence, tags: list[str]) -> None:
        for i, tag in enumerate(tags):
            try:
                check_prefix(tag, self.scheme)
            except ValueError as error:
                kind = "not in scheme" if "not in scheme" in str(error) else "no tag"
                self.problems.add(f"{self.source.name}:{sentence.line + i}: {error}", kind)


# --- spans ----------------------------------------------------------------------------------------


class SpanReader(RecordReader):
    """Reads JSON lines with spans, or plain lines. What ends of spans mean is determined after all files are read."""

    keep_empty = False
    empty = 0

    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        self._rows, self._spans = array("q"), JsonColumn()  # the rows that have spans, and their spans
        column = self.data.columns.privileged
        self.privileged = None if column is None else PrivilegedColumn(column, self.rows, self.source.name)

    @property
    def given(self) -> Iterator[tuple[int, list[GivenSpan]]]:
        """The rows that have spans, and their spans as the file gives them."""
        for row, spans in zip(self._rows, self._spans, strict=True):
            yield row, [GivenSpan(*span) for span in spans]

    def add(self, line: int, record: Record) -> None:
        """Append one record as a document; an empty text is left out unless `keep_empty` is set."""
        text = text_of(record, self.text)
        given = self._given(record) if self.label_allowed else None
        beside = self.privileged.read(record, text) if self.privileged is not None else None
        key = self.key_of(line, record) if self.id is not None else None
        if not text and not self.keep_empty:
            self.empty += 1
            return
        if self.privileged is not None and beside is not None:
            self.privileged.add(len(self.rows), line, beside)
            self.rows.privileged.append([])
        if given is not None:
            self._rows.append(len(self.rows))
            self._spans.append(given)
        self.rows.append(text, key, self.number, line, spans=None)

    def _given(self, record: Record) -> list[GivenSpan] | None:
        value = record.get(self.label)
        if value is not None:
            return given_spans(value, self.label)
        if not self.label_needed:
            return None
        if self.label not in record:
            raise missing_columns([self.label], record)
        raise RowError(f"{self.label!r} is null: a row for training or validation needs spans ({{}} for none)")


def _settle_spans(readers: list[SpanReader], data: Data, problems: Problems) -> str | None:
    """Convert the spans of all files into entities and annotations; return what their ends mean, or None if unknown."""
    finder, wanted = EndFinder(), data.columns.span_end
    beside = [reader.privileged for reader in readers if reader.privileged is not None]
    for reader in readers:
        for row, given in reader.given:
            finder.see(f"{reader.source.name}:{reader.rows.line[row]}", given, reader.rows.text[row])
    for column in beside:
        column.see_ends(finder)
    span_end = finder.warm_up(wanted, problems)
    tagged = [(column.name, column.tags) for column in beside if column.tags]
    scheme = scheme_of(tagged, data) if tagged else ""
    for column in beside:
        column.settle(span_end, scheme, data.scheme != "auto", problems)
    for reader in readers:
        name, entities = reader.source.name, Entities(span_end)
        for row, given in reader.given:
            line = reader.rows.line[row]
            try:
                reader.rows.spans[row] = entities.of(f"{name}:{line}", given, reader.rows.text[row])
            except RowError as error:
                problems.add_row(name, line, error)
        entities.tell(name, problems)
        if reader.empty:
            problems.remark(f"{name}: {reader.empty:,} empty text(s) left out")
    return span_end if finder.any or wanted != "auto" else None


# --- types ----------------------------------------------------------------------------------------


def _entity_types(data: Data, train: Rows) -> list[str]:
    """Entity types in the order of their numbers.

    Raises:
        InputError: the label file is invalid, or the training rows have no entity.
    """
    if isinstance(data.labels, list):
        return list(data.labels)
    if isinstance(data.labels, str):
        return read_label_file(data.labels, data.encoding, least=1)
    found = set(train.spans.counts())
    if not found:
        raise InputError("data.train: holds no entity; tagging needs at least one")
    return sorted(found)


def _check_entities(data: Data, corpus: Corpus, problems: Problems) -> dict[str, np.ndarray]:
    """For every part, whether its documents have spans (0) or not (-1), int64 [N].

    Types outside the map, entities longer than a piece of a document may be, and a test part in which only some
    documents have spans become `problems`.
    """
    known = set(corpus.types)
    most = data.max_length - 2
    columns = {}
    for part, rows in corpus.parts.items():
        columns[part] = np.where(rows.spans.bare, -1, 0)
        check_all_or_none(part, columns[part] < 0, rows, corpus.files, problems)
        for i, spans in enumerate(rows.spans):
            for span in spans or ():
                text = shortened(rows.text[i][span.start : span.end], 33)
                place = f"{corpus.files[rows.file[i]]}:{rows.line[i]}: entity {text!r}"
                if span.type not in known:
                    why, remedy = outside(data)
                    found = f"type {span.type!r} {why}{suggest(span.type, corpus.types, 0.5)}"
                    allowed = f"(allowed: {shown(corpus.types)})"
                    problems.add(f"{place}: {found} {allowed}{remedy}", f"{part}: type {span.type}")
                elif span.end - span.start > most:
                    found = f"{span.end - span.start} characters, and data.max_length leaves {most} a piece"
                    problems.add(f"{place}: has {found}; raise data.max_length, or correct the entity", "too long")
    return columns

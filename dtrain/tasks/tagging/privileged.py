"""Annotations that only teachers may read (`data.columns.privileged`): spans, or a tag for each character.

They are read like labels: a character has one annotation at most, the outer one of nested spans is kept, and all types
must occur in the training rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from dtrain.data.columns import JsonColumn
from dtrain.data.conll import Sentence, Sentences, join_tokens, spread
from dtrain.data.corpus import Corpus
from dtrain.data.problems import Problems, RowError, shown
from dtrain.data.records import Record, missing_columns
from dtrain.data.schemes import Span, check_prefix, outside_entities, read_spans
from dtrain.data.sources import Rows
from dtrain.errors import InputError, suggest
from dtrain.recipe.data import Data
from dtrain.recipe.values import Column
from dtrain.tasks.tagging.scheme import TagFile, find_scheme, read_among_strays
from dtrain.tasks.tagging.spans import EndFinder, Entities, GivenSpan, given_spans

KEY = "data.columns.privileged"


class PrivilegedColumn:
    """The annotations of one file of JSON lines: collected row by row, and converted once all files are read."""

    def __init__(self, column: Column, rows: Rows, name: str) -> None:
        self.column, self.rows, self.name = column, rows, name
        self._rows, self._spans = array("q"), JsonColumn()  # rows that have spans
        self._tagged, self.tags = array("q"), Sentences()  # rows that have a tag for each character

    def read(self, record: Record, text: str) -> list[str] | list[GivenSpan]:
        """The annotations of a record as they are given: a tag for each character, or spans.

        Raises:
            RowError: the column is missing or null, or holds something else.
        """
        if self.column not in record:
            raise missing_columns([self.column], record)
        value = record[self.column]
        if value is None:
            raise RowError(f"{self.column!r} is null: a row needs its annotations ([] for none)")
        if type(value) is list and value and all(isinstance(tag, str) for tag in value):
            if len(value) != len(text):
                raise RowError(
                    f"{self.column!r}: must have a tag for each character",
                    f", found {len(value)} for {len(text)} characters",
                )
            return value
        try:
            return given_spans(value, self.column)
        except RowError as error:
            raise self._named(error) from None

    def add(self, row: int, line: int, found: list[str] | list[GivenSpan]) -> None:
        """Store what `read` returned for a row."""
        tags = [one for one in found if isinstance(one, str)]
        if tags:
            self._tagged.append(row)
            self.tags.append(Sentence(line, [], tags))
        else:
            self._rows.append(row)
            self._spans.append(found)

    @property
    def given(self) -> Iterator[tuple[int, list[GivenSpan]]]:
        """The rows that have spans, and their spans."""
        for row, spans in zip(self._rows, self._spans, strict=True):
            yield row, [GivenSpan(*span) for span in spans]

    def _named(self, error: RowError) -> RowError:
        """The same error with the column's name, since labels are spans as well."""
        column = f"{self.column!r}"
        if error.kind.startswith(column):
            return error
        return RowError(f"{column}: {error.kind}", str(error)[len(error.kind) :])

    def see_ends(self, finder: EndFinder) -> None:
        """Pass its spans to `finder`, which determines whether ends are inclusive."""
        for row, given in self.given:
            finder.see(f"{self.name}:{self.rows.line[row]}", given, self.rows.text[row])

    def settle(self, span_end: str, scheme: str, strict: bool, problems: Problems) -> None:
        """Convert what was read into annotations of `rows`.

        Args:
            span_end: what ends of spans mean, `inclusive` or `exclusive`.
            scheme: the scheme of its tags.
            strict: whether the recipe names the scheme, so that tags of another one are problems.
        """
        entities = Entities(span_end)
        for row, given in self.given:
            line = self.rows.line[row]
            try:
                self.rows.privileged[row] = entities.of(f"{self.name}:{line}", given, self.rows.text[row])
            except RowError as error:
                problems.add_row(self.name, line, self._named(error))
        entities.tell(f"{self.name}: {self.column!r}", problems)
        tags = _Tags(self.name, scheme, strict, problems)
        for row, sentence in zip(self._tagged, self.tags, strict=True):
            spans = tags.spans(sentence.tags, lambda _, line=sentence.line: line)
            if spans is not None:
                self.rows.privileged[row] = spans
        tags.tell()


def annotated(sentences: Sentences, name: str, scheme: str, strict: bool, problems: Problems) -> Iterator[list[Span]]:
    """The annotations of each sentence of a CoNLL file, as spans of characters of its text."""
    tags = _Tags(name, scheme, strict, problems)
    for sentence in sentences:
        spans = tags.spans(sentence.privileged or [], lambda token, line=sentence.line: line + token)
        yield spread(spans or [], sentence.tokens, join_tokens(sentence.tokens)[1])
    tags.tell()


def scheme_of(files: list[tuple[str, Sentences]], data: Data) -> str:
    """The scheme of annotations that are given as tags: the recipe's, else the one in which the fewest tags are lost.

    Args:
        files: the name and the annotations of each file.

    Raises:
        InputError: as `find_scheme`.
    """
    if data.scheme != "auto":
        return data.scheme
    return find_scheme([TagFile(f"{name} ({KEY})", sentences) for name, sentences in files])


def of_conll(sentences: Sentences) -> Sentences:
    """The same sentences with their annotations in place of their tags."""
    found = Sentences()
    for sentence in sentences:
        found.append(Sentence(sentence.line, sentence.tokens, sentence.privileged))
    return found


class _Tags:
    """Reads the tags of one file, and counts those that are read as O because their entity is incomplete."""

    def __init__(self, name: str, scheme: str, strict: bool, problems: Problems) -> None:
        self.name, self.scheme, self.strict, self.problems = name, scheme, strict, problems
        self._lost, self._first = 0, ""

    def spans(self, tags: list[str] | None, line_of: Any) -> list[Span] | None:
        """The spans of a row's tags, over positions of tags; None if some are invalid, which becomes a problem.

        Args:
            line_of: a function from the position of a tag to its line.
        """
        tags = tags or []
        try:
            found = read_spans(tags, self.scheme) if self.strict else read_among_strays(tags, self.scheme)[0]
        except ValueError:
            for number, tag in enumerate(tags):
                try:
                    check_prefix(tag, self.scheme)
                except ValueError as error:
                    kind = f"{KEY}: " + ("not in scheme" if "not in scheme" in str(error) else "no tag")
                    self.problems.add(f"{self.name}:{line_of(number)}: {KEY}: {error}", kind)
            return None
        lost = outside_entities(tags, found)
        if lost:
            self._lost += len(lost)
            self._first = self._first or f"{self.name}:{line_of(lost[0])}: {tags[lost[0]]!r}"
        return found

    def tell(self) -> None:
        """Add a remark on the tags that were read as O."""
        if self._lost:
            self.problems.remark(
                f"{self.name}: {KEY}: {self._lost:,} tag(s) are part of no complete annotation in scheme {self.scheme} and "
                f"are read as O ({self._first})"
            )


def number_types(corpus: Corpus, problems: Problems) -> None:
    """Set `corpus.privileged` to the types of the training rows' annotations; other types become problems.

    Raises:
        InputError: the training rows have no annotation.
    """
    corpus.privileged = sorted(corpus.parts["train"].privileged.counts())
    if not corpus.privileged:
        raise InputError(f"{KEY}: no training row has an annotation there; leave the key out, or name another column")
    known = set(corpus.privileged)
    for part, rows in corpus.parts.items():
        for row, spans in enumerate(rows.privileged):
            for span in spans or ():
                if span.type not in known:
                    place = f"{corpus.files[rows.file[row]]}:{rows.line[row]}"
                    hint = suggest(span.type, corpus.privileged, 0.5)
                    problems.add(
                        f"{place}: {KEY}: no training row has an annotation of type {span.type!r}{hint} (allowed: "
                        f"{shown(corpus.privileged)})",
                        f"{part}: privileged type {span.type}",
                    )

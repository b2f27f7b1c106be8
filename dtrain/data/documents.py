"""The sources of task `tagging`: documents with their entities, from CoNLL files, JSON lines and plain lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtrain.data.conll import Sentence, join_tokens, read_conll, spread
from dtrain.data.files import Source
from dtrain.data.problems import Problems, RowError
from dtrain.data.records import Record, kind_of, missing_columns
from dtrain.data.schemes import SCHEMES, SchemeFinder, Span, check_prefix, outside_entities, read_spans
from dtrain.data.sources import RecordReader, Rows, check_columns, text_of
from dtrain.errors import InputError
from dtrain.recipe.data import Columns, Data


def read_documents(
    data: Data, sources: list[Source], files: list[str], problems: Problems, *, keep_empty: bool = False
) -> tuple[dict[str, Rows], str, list[str]]:
    """Every source's documents by part, the scheme of their tags, and remarks that are no errors.

    Spans given as such have no scheme; the user's is `bio` then, where the recipe names none.

    Args:
        keep_empty: keep empty texts of JSON and plain lines, which nothing can be learnt from, but which want an answer.

    Raises:
        InputError: where columns do not fit a file, or the tags are of no scheme; problems with rows are collected.
    """
    _check_column_names(data, sources, problems)
    problems.raise_if_any()
    sentences = {
        number: read_conll(source, data.columns.text, data.columns.label, source.part != "transfer", problems)
        for number, source in enumerate(sources)
        if source.format == "conll"
    }
    problems.raise_if_any()
    scheme = data.scheme if data.scheme != "auto" else _find_scheme(sources, sentences)
    parts: dict[str, Rows] = {}
    seen: dict[str, dict[str, str]] = {}
    remarks: list[str] = []
    has_id = False
    for number, source in enumerate(sources):
        rows, file = parts.setdefault(source.part, Rows()), files.index(source.name)
        if number in sentences:
            _add_sentences(source, file, sentences.pop(number), scheme, rows, problems, remarks)
            continue
        reader = SpanReader(data, source, file, rows, seen.setdefault(source.part, {}), problems)
        reader.keep_empty = keep_empty
        reader.read()
        has_id |= bool(reader.has_id)
        if reader.nested:
            remarks.append(
                f"{source.name}: {reader.nested:,} span(s) inside another left out, the outer one is kept "
                f"({reader.first_nested})"
            )
        if reader.empty:
            remarks.append(f"{source.name}: {reader.empty:,} empty text(s) left out")
    if data.columns.id is not None and not has_id and not problems:
        problems.add(f"data.columns.id: no file has a column {data.columns.id!r}")
    return parts, scheme, remarks


def _check_column_names(data: Data, sources: list[Source], problems: Problems) -> None:
    """Names are for JSON; CoNLL files have numbers, or by default the first and the last column."""
    for source in sources:
        if source.format != "conll":
            check_columns(data, source, problems)
    if all(source.format == "conll" for source in sources):
        for name in ("text", "label"):
            column = getattr(data.columns, name)
            if isinstance(column, str) and column != Columns.model_fields[name].default:
                problems.add(f"data.columns.{name}: {column!r} is a name; give the number (from 0) of a CoNLL column")


# --- CoNLL ----------------------------------------------------------------------------------------


def _find_scheme(sources: list[Source], sentences: Mapping[int, list[Sentence]]) -> str:
    finder = SchemeFinder()
    for found in sentences.values():
        for sentence in found:
            finder.see(sentence.tags or ())
    scheme = finder.scheme()
    if scheme is not None:
        return scheme
    places = [_first_place(prefix, sources, sentences) for prefix in sorted(finder.prefixes)]
    schemes = "; ".join(f"{name} {' '.join(['O', *letters])}" for name, letters in SCHEMES.items())
    raise InputError(f"data.scheme: the tags are of no one scheme: found {', '.join(places)} (allowed: {schemes})")


def _first_place(prefix: str, sources: list[Source], sentences: Mapping[int, list[Sentence]]) -> str:
    return next(
        f"{tag!r} ({sources[number].name}:{sentence.line + i})"
        for number, found in sentences.items()
        for sentence in found
        for i, tag in enumerate(sentence.tags or ())
        if tag.startswith(f"{prefix}-")
    )


def _add_sentences(
    source: Source,
    file: int,
    sentences: list[Sentence],
    scheme: str,
    rows: Rows,
    problems: Problems,
    remarks: list[str],
) -> None:
    """Append sentences as documents; tags outside every entity are counted in one remark a file."""
    if not sentences and not problems:
        problems.add(f"{source.key}: {source.name}: holds no rows")
    lost = 0
    first = ""
    for sentence in sentences:
        text, starts = join_tokens(sentence.tokens)
        spans: list[Span] | None = None
        if sentence.tags is not None:
            try:
                found = read_spans(sentence.tags, scheme)
            except ValueError:
                _add_wrong_tags(source, sentence, sentence.tags, scheme, problems)
                continue
            bad = outside_entities(sentence.tags, found)
            if bad and not lost:
                first = f"{source.name}:{sentence.line + bad[0]}: {sentence.tags[bad[0]]!r}"
            lost += len(bad)
            spans = spread(found, sentence.tokens, starts)
        rows.text.append(text)
        rows.spans.append(spans)
        rows.key.append(f"{file}:{sentence.line}")
        rows.file.append(file)
        rows.line.append(sentence.line)
    if lost:
        remarks.append(f"{source.name}: {lost:,} tag(s) make no whole entity in scheme {scheme}: read as O ({first})")


def _add_wrong_tags(source: Source, sentence: Sentence, tags: list[str], scheme: str, problems: Problems) -> None:
    for i, tag in enumerate(tags):
        try:
            check_prefix(tag, scheme)
        except ValueError as error:
            problems.add(f"{source.name}:{sentence.line + i}: {error}")


# --- spans ----------------------------------------------------------------------------------------


class SpanReader(RecordReader):
    """Reads JSON lines with spans (the end is the last character's place, as in CLUENER), or plain lines.

    A span inside another is left out and counted: the outer one is kept.
    """

    keep_empty = False
    empty = nested = 0
    first_nested = ""

    def add(self, line: int, record: Record) -> None:
        """Append one record as a document; an empty text is left out, unless wanted."""
        text = text_of(record, self.text)
        spans = self._spans(line, record, text) if self.label_allowed else None
        key = self.key_of(line, record) if self.id is not None else None
        if not text and not self.keep_empty:
            self.empty += 1
            return
        rows = self.rows
        rows.text.append(text)
        rows.spans.append(spans)
        rows.key.append(key if key is not None else f"{self.number}:{line}")
        rows.file.append(self.number)
        rows.line.append(line)

    def _spans(self, line: int, record: Record, text: str) -> list[Span] | None:
        value = record.get(self.label)
        if value is None:
            if not self.label_needed:
                return None
            if self.label not in record:
                raise missing_columns([self.label], record)
            raise RowError(f"{self.label!r} is null: a row for training or validation needs spans ({{}} for none)")
        if isinstance(value, dict):
            found = _spans_by_type(value, text)
        elif isinstance(value, list):
            found = [_span_of(entry, text) for entry in value]
        else:
            raise ValueError(f"{self.label!r} must be an object or a list of spans, found {kind_of(value)}")
        kept, left_out = _apart(found, text)
        if left_out and not self.nested:
            start, end, kind = left_out[0]
            self.first_nested = f"{self.source.name}:{line}: {text[start:end]!r} ({kind})"
        self.nested += len(left_out)
        return kept


def _spans_by_type(value: Mapping[str, Any], text: str) -> list[Span]:
    """CLUENER's form: {"type": {"surface": [[start, end], ...]}}."""
    spans = []
    for kind, surfaces in value.items():
        if not isinstance(surfaces, dict):
            raise ValueError(f"type {kind!r} must hold an object of surfaces, found {kind_of(surfaces)}")
        for surface, places in surfaces.items():
            if not isinstance(places, list):
                raise ValueError(f"{surface!r} ({kind}) must have a list of [start, end], found {kind_of(places)}")
            for place in places:
                if not isinstance(place, list) or len(place) != 2:
                    raise ValueError(f"{surface!r} ({kind}): a place must be [start, end], found {place!r}")
                spans.append(_span(place[0], place[1], kind, surface, text))
    return spans


def _span_of(entry: Any, text: str) -> Span:
    """The list form: {"start": .., "end": .., "type": ..}, with the surface in "text" if at all."""
    if not isinstance(entry, dict) or not {"start", "end", "type"} <= set(entry):
        raise ValueError('a span must be an object with "start", "end" (the last character\'s place) and "type"')
    return _span(entry["start"], entry["end"], entry["type"], entry.get("text"), text)


def _span(start: Any, end: Any, kind: Any, surface: Any, text: str) -> Span:
    if not isinstance(kind, str) or not kind.strip() or kind != kind.strip() or kind[0] == "-" or kind[-1] == "-":
        raise ValueError(f"an entity type must be a text without blanks or dashes around it, found {kind!r}")
    for place in (start, end):
        if isinstance(place, bool) or not isinstance(place, int):
            raise ValueError(f"start and end of a span ({kind}) must be whole numbers, found {kind_of(place)}")
    if not 0 <= start <= end < len(text):
        raise ValueError(f"span [{start}, {end}] ({kind}) is not within the text (0 to {len(text) - 1}, end included)")
    found = text[start : end + 1]
    if surface is not None and surface != found:
        near = "; its end must be the place of its last character" if surface == text[start:end] else ""
        raise ValueError(f"span [{start}, {end}] ({kind}) is {found!r} in the text, not {surface!r}{near}")
    return Span(start, end + 1, kind)


def _apart(spans: list[Span], text: str) -> tuple[list[Span], list[Span]]:
    """Spans in order of their places, and those left out because they lie inside another.

    Raises ValueError where two cross, or are of the same characters: which of them to keep nobody can say.
    """
    kept: list[Span] = []
    left_out: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        last = kept[-1] if kept else None
        if last is None or span.start >= last.end:
            kept.append(span)
        elif span.end <= last.end and span[:2] != last[:2]:
            left_out.append(span)
        else:
            names = (f"{text[s.start : s.end]!r} ({s.type}, [{s.start}, {s.end - 1}])" for s in (last, span))
            raise ValueError(f"spans overlap: {' and '.join(names)}; one character can have one entity only")
    return kept, left_out

"""Spans in JSON lines: their forms, whether their ends are inclusive, and which of them become entities.

An end is the position of a span's last character (inclusive, as in CLUENER) or the position after it (exclusive, as in
Python's slices). All files of a recipe must agree; where `data.columns.span_end` does not say which, the data often
shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dtrain.data.problems import Problems, RowError, shortened
from dtrain.data.records import kind_of
from dtrain.data.schemes import Span

INCLUSIVE, EXCLUSIVE = "inclusive", "exclusive"


class GivenSpan(NamedTuple):
    """A span as the file gives it; `surface` is its text, or None if the file does not give it."""

    start: int
    end: int
    type: str
    surface: Any


def given_spans(value: Any, column: str | int) -> list[GivenSpan]:
    """The spans in a row's column; raises RowError if the value is not a valid list or object of spans."""
    if type(value) is dict:
        return _by_type(value)
    if type(value) is list:
        return [_entry(entry) for entry in value]
    raise RowError(f"{column!r} must be an object or a list of spans", f", found {kind_of(value)}")


def _by_type(value: Mapping[str, Any]) -> list[GivenSpan]:
    """CLUENER's form: {"type": {"surface": [[start, end], ...]}}."""
    spans = []
    for kind, surfaces in value.items():
        if type(surfaces) is not dict:
            raise RowError("type ", f"{kind!r} must hold an object of surfaces, found {kind_of(surfaces)}")
        for surface, places in surfaces.items():
            name = f"{shortened(surface)!r} ({kind})"
            if type(places) is not list:
                raise RowError("", f"{name} must have a list of [start, end], found {kind_of(places)}")
            for place in places:
                if not isinstance(place, list) or len(place) != 2:
                    raise RowError("", f"{name}: a place must be [start, end], found {shortened(repr(place))}")
                spans.append(_span(place[0], place[1], kind, surface))
    return spans


def _entry(entry: Any) -> GivenSpan:
    """The list form: {"start": .., "end": .., "type": ..}, with the surface in "text" if at all; or [start, end, type]."""
    if type(entry) is list and len(entry) == 3:
        return _span(entry[0], entry[1], entry[2], None)
    if not isinstance(entry, dict) or not {"start", "end", "type"} <= set(entry):
        what = 'a span must be an object with "start", "end" and "type", or [start, end, type]'
        raise RowError(what, f", found {kind_of(entry)}")
    return _span(entry["start"], entry["end"], entry["type"], entry.get("text"))


def _span(start: Any, end: Any, kind: Any, surface: Any) -> GivenSpan:
    if not isinstance(kind, str) or not kind.strip() or kind != kind.strip() or kind[0] == "-" or kind[-1] == "-":
        found = shortened(repr(kind))
        raise RowError("an entity type must be a text without blanks or dashes around it", f", found {found}")
    for place in (start, end):
        if isinstance(place, bool) or not isinstance(place, int):
            raise RowError("start and end of a span", f" ({kind}) must be whole numbers, found {kind_of(place)}")
    return GivenSpan(start, end, kind, surface)


class EndFinder:
    """Counts over all rows the spans that show whether ends are inclusive or exclusive."""

    def __init__(self) -> None:
        self.counts = {INCLUSIVE: 0, EXCLUSIVE: 0}
        self.places: dict[str, str] = {}  # the place of the first span that shows either
        self.any: tuple[str, str] | None = None  # the place of the first span, and its text if ends are inclusive

    def see(self, place: str, spans: Sequence[GivenSpan], text: str) -> None:
        """Count the spans of one row."""
        for span in spans:
            self.any = self.any or (place, text[span.start : span.end + 1])
            self._note(place, _told_by(span, text))
        ordered = sorted(spans, key=lambda span: (span.start, span.end))
        for one, other in zip(ordered, ordered[1:], strict=False):
            # With inclusive ends, adjacent spans would share a character, which only nested spans may do.
            if one.start < one.end == other.start < other.end:
                self._note(place, EXCLUSIVE)

    def _note(self, place: str, told: str | None) -> None:
        if told is not None:
            self.counts[told] += 1
            self.places.setdefault(told, place)

    def warm_up(self, wanted: str, problems: Problems) -> str:
        """What ends mean: as the recipe says, else what more spans show, else `inclusive`; with a remark if the user
        should check it."""
        if wanted != "auto":
            return wanted
        if self.counts[EXCLUSIVE] > self.counts[INCLUSIVE]:
            problems.remark(
                f"{self.places[EXCLUSIVE]}: span ends are read as exclusive (one beyond the last character), as "
                f"{self.counts[EXCLUSIVE]:,} span(s) show; if that is wrong, set data.columns.span_end: inclusive"
            )
            return EXCLUSIVE
        if self.any is not None and not self.counts[INCLUSIVE]:
            place, surface = self.any
            problems.remark(
                f"{place}: nothing tells whether span ends are inclusive or exclusive; they are read as inclusive, the "
                f"first span as {shortened(surface)!r}: set data.columns.span_end"
            )
        return INCLUSIVE


def _told_by(span: GivenSpan, text: str) -> str | None:
    """What a single span shows about its end, `inclusive` or `exclusive`; None if both are possible."""
    if isinstance(span.surface, str):
        inclusive = text[span.start : span.end + 1] == span.surface
        if inclusive != (text[span.start : span.end] == span.surface):
            return INCLUSIVE if inclusive else EXCLUSIVE
        if not inclusive:
            return None
    if span.end == len(text):
        return EXCLUSIVE
    return INCLUSIVE if span.end == span.start else None


class Entities:
    """Converts spans into entities, and counts the spans of one file that are left out."""

    def __init__(self, span_end: str) -> None:
        self.inclusive = span_end == INCLUSIVE
        self.nested = self.twice = 0
        self.first_nested = self.first_twice = ""

    def of(self, place: str, given: Sequence[GivenSpan], text: str) -> list[Span]:
        """The entities of a row, in order; the outer one of nested spans and one of equal spans are kept.

        Raises:
            RowError: a span is not within the text, or its text differs from its surface; two spans overlap without
                being nested; or two spans of different types have the same characters.
        """
        kept: list[Span] = []
        for span in sorted((self._checked(span, text) for span in given), key=lambda s: (s.start, -s.end, s.type)):
            last = kept[-1] if kept else None
            if last is None or span.start >= last.end:
                kept.append(span)
            elif span == last:
                self.twice += 1
                self.first_twice = self.first_twice or f"{place}: {text[span.start : span.end]!r} ({span.type})"
            elif span.end <= last.end and span[:2] != last[:2]:
                self.nested += 1
                self.first_nested = self.first_nested or f"{place}: {text[span.start : span.end]!r} ({span.type})"
            else:
                names = (
                    f"{text[s.start : s.end]!r} ({s.type}, [{s.start}, {s.end - self.inclusive}])" for s in (last, span)
                )
                raise RowError("spans overlap", f": {' and '.join(names)}; one character can have one entity only")
        return kept

    def _checked(self, given: GivenSpan, text: str) -> Span:
        start, kind = given.start, given.type
        end = given.end + self.inclusive
        name = f"[{start}, {given.end}] ({kind})"
        if not 0 <= start < end <= len(text):
            allowed = f"0 to {len(text) - 1}, end included" if self.inclusive else f"0 to {len(text)}, end excluded"
            raise RowError("span ", f"{name} is not within the text ({allowed})")
        found = text[start:end]
        if given.surface is not None and given.surface != found:
            other = "the place after its last character" if not self.inclusive else "the place of its last character"
            near = (
                f"; its end must be {other}"
                if given.surface == text[start : end + (-1 if self.inclusive else 1)]
                else ""
            )
            raise RowError(
                "span ", f"{name} is {shortened(found)!r} in the text, not {shortened(str(given.surface))!r}{near}"
            )
        return Span(start, end, kind)

    def tell(self, name: str, problems: Problems) -> None:
        """Add remarks on the spans of a file that were left out."""
        if self.nested:
            what = f"{self.nested:,} span(s) inside another left out, the outer one is kept ({self.first_nested})"
            problems.remark(f"{name}: {what}")
        if self.twice:
            problems.remark(f"{name}: {self.twice:,} span(s) given twice are one entity each ({self.first_twice})")

"""Tag schemes: from the user's tags to entity spans and back. Inside the package everything is BIOES.

    iob1    I-X, and B-X only where an entity touches one of the same type before it
    bio     B-X opens every entity, I-X continues it (IOB2)
    bioes   B-X I-X ... E-X, and S-X for an entity of one token
    bmes    the same with M for I
    bilou   the same with L for E and U for S

Spans are read by the rules of seqeval's strict mode: tags that form no complete entity of the scheme are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# For each scheme, its prefixes and the BIOES prefixes that they stand for.
SCHEMES: dict[str, dict[str, str]] = {
    "iob1": {"B": "B", "I": "I"},
    "bio": {"B": "B", "I": "I"},
    "bioes": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "bmes": {"B": "B", "M": "I", "E": "E", "S": "S"},
    "bilou": {"B": "B", "I": "I", "L": "E", "U": "S"},
}
OUTSIDE = "O"
# A type must not begin or end with a dash: seqeval strips dashes around types, and would give it another name.
_TAG = re.compile(r"([A-Z])-([^-](?:.*[^-])?)", re.DOTALL)


class Span(NamedTuple):
    """An entity: positions `start` to `end` (exclusive) of a text, and its type."""

    start: int
    end: int
    type: str


@lru_cache(maxsize=4096)
def parse_tag(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag, ("O", "") for O; raises ValueError, with a message for the user, for anything else."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = _TAG.fullmatch(tag)
    if found is None:
        raise ValueError(f"{tag!r} is no tag (must be O, or a prefix, a dash and a type, as B-ORG)")
    return found[1], found[2]


def check_prefix(tag: str, scheme: str) -> None:
    """Raises ValueError where the tag is malformed or the scheme does not have its prefix."""
    prefix, _ = parse_tag(tag)
    if prefix != OUTSIDE and prefix not in SCHEMES[scheme]:
        allowed = ", ".join([OUTSIDE, *(f"{letter}-..." for letter in SCHEMES[scheme])])
        raise ValueError(f"tag {tag!r} is not in scheme {scheme} (allowed: {allowed})")


def read_spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """The entities of one sentence, as seqeval's strict mode counts them.

    Raises ValueError for a tag that is malformed or not in the scheme.
    """
    for tag in set(tags):
        check_prefix(tag, scheme)
    pairs = [parse_tag(tag) for tag in tags]
    if scheme == "iob1":
        return _iob1(pairs)
    meaning = SCHEMES[scheme] | {OUTSIDE: OUTSIDE}
    spans = []
    start = None
    for i, (prefix, kind) in enumerate(pairs):
        what = meaning[prefix]
        if start is not None and (what not in "IE" or kind != pairs[start][1]):
            start = None
        if what == "B":
            start = i
        elif what == "S":
            spans.append(Span(i, i + 1, kind))
        following = pairs[i + 1] if i + 1 < len(pairs) else (OUTSIDE, "")
        ends = following != ("I", kind) if scheme == "bio" else what == "E"
        if start is not None and ends:
            spans.append(Span(start, i + 1, kind))
            start = None
    return spans


def _iob1(pairs: list[tuple[str, str]]) -> list[Span]:
    """Spans by seqeval's patterns of IOB1: a B opens an entity only directly after a tag of the same type."""
    spans = []
    i = 0
    while i < len(pairs):
        prefix, kind = pairs[i]
        before, kind_before = pairs[i - 1] if i else (OUTSIDE, "")
        if prefix == "I":
            opens = before != "I" or kind_before != kind
        else:
            opens = prefix == "B" and before != OUTSIDE and kind_before == kind
        if not opens:
            i += 1
            continue
        end = i + 1
        while end < len(pairs) and pairs[end] == ("I", kind):
            end += 1
        after, kind_after = pairs[end] if end < len(pairs) else (OUTSIDE, "")
        if not (pairs[end - 1][0] == "B" and after == "B" and kind_after != kind):
            spans.append(Span(i, end, kind))
        i = end
    return spans


def write_tags(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """Tags of `length` positions for spans that do not overlap, such that `read_spans` returns the same spans."""
    letters = {meaning: letter for letter, meaning in SCHEMES[scheme].items()}
    inside = letters["I"]
    tags = [OUTSIDE] * length
    before: Span | None = None
    for span in sorted(spans):
        first = "B"
        if scheme == "iob1":
            first = "B" if before is not None and before[1:] == (span.start, span.type) else "I"
        tags[span.start : span.end] = [f"{inside}-{span.type}"] * (span.end - span.start)
        tags[span.start] = f"{first}-{span.type}"
        if "E" in letters:
            tags[span.end - 1] = f"{letters['E']}-{span.type}"
            if span.end - span.start == 1:
                tags[span.start] = f"{letters['S']}-{span.type}"
        before = span
    return tags


def tag_names(types: Iterable[str]) -> list[str]:
    """Names of the package's tag numbers: O, then B, I, E, S of each type in order."""
    return [OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in "BIES")]


def number_tags(spans: Iterable[Span], length: int, types: Mapping[str, int]) -> np.ndarray:
    """BIOES tags of spans as numbers, int16 [length], in the order of `tag_names`; `types` gives each type's number."""
    numbers = np.zeros(length, dtype=np.int16)
    for start, end, kind in spans:
        first = 1 + 4 * types[kind]
        if end - start == 1:
            numbers[start] = first + 3
        else:
            numbers[start], numbers[end - 1] = first, first + 2
            numbers[start + 1 : end - 1] = first + 1
    return numbers


def outside_entities(tags: Sequence[str], spans: Collection[Span]) -> list[int]:
    """Positions with a tag other than O that are in none of `spans`: those that strict reading ignored."""
    covered = {i for span in spans for i in range(span.start, span.end)}
    return [i for i, tag in enumerate(tags) if tag != OUTSIDE and i not in covered]

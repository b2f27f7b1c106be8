"""Tag schemes against seqeval's strict mode, and round trips between all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Tokens

from dtrain.data.conll import Sentence
from dtrain.data.schemes import (
    SCHEMES,
    Span,
    number_tags,
    outside_entities,
    parse_tag,
    read_spans,
    tag_names,
    write_tags,
)
from dtrain.errors import InputError
from dtrain.tasks.tagging.scheme import TagFile, find_scheme, lost_tags, read_among_strays

ORACLES = {"iob1": IOB1, "bio": IOB2, "bioes": IOBES, "bmes": IOBES, "bilou": BILOU}
TYPES = ["X", "Y", "a-b"]


def seqeval_spans(tags: list[str], scheme: str) -> list[Span]:
    """seqeval knows BMES as IOBES."""
    if scheme == "bmes":
        tags = [f"I{tag[1:]}" if tag[0] == "M" else tag for tag in tags]
    return [Span(e.start, e.end, e.tag) for e in Tokens(tags, ORACLES[scheme]).entities]


@st.composite
def tag_sequences(draw: st.DrawFn) -> tuple[str, list[str]]:
    scheme = draw(st.sampled_from(sorted(SCHEMES)))
    tags = ["O", *(f"{letter}-{kind}" for letter in SCHEMES[scheme] for kind in TYPES[: draw(st.integers(1, 3))])]
    return scheme, draw(st.lists(st.sampled_from(tags), max_size=12))


@st.composite
def entities(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Spans that do not overlap, touching ones among them, and the length of their text."""
    spans = []
    position = 0
    for gap, length, kind in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(TYPES)), max_size=6)
    ):
        spans.append(Span(position + gap, position + gap + length, kind))
        position += gap + length
    return spans, position + draw(st.integers(0, 2))


@given(tag_sequences())
def test_any_tags_are_read_as_seqeval_reads_them(case: tuple[str, list[str]]) -> None:
    scheme, tags = case
    spans = read_spans(tags, scheme)
    assert spans == seqeval_spans(tags, scheme)
    covered = [i for span in spans for i in range(span.start, span.end)]
    assert outside_entities(tags, spans) == [i for i, tag in enumerate(tags) if tag != "O" and i not in covered]


@given(entities(), st.permutations(sorted(SCHEMES)))
def test_entities_survive_every_scheme(case: tuple[list[Span], int], chain: list[str]) -> None:
    spans, length = case
    kept = spans
    for scheme in chain:
        tags = write_tags(kept, length, scheme)
        assert len(tags) == length
        assert seqeval_spans(tags, scheme) == spans
        kept = read_spans(tags, scheme)
    assert kept == spans
    names = tag_names(TYPES)
    numbers = number_tags(spans, length, {kind: i for i, kind in enumerate(TYPES)})
    assert [names[i] for i in numbers] == write_tags(spans, length, "bioes")


@pytest.mark.parametrize(
    ("scheme", "tags", "spans"),
    [
        ("bio", "B-X I-X I-Y B-Y O I-X", [(0, 2, "X"), (3, 4, "Y")]),
        ("iob1", "I-X B-X I-X O B-Y I-Y I-X", [(0, 1, "X"), (1, 3, "X"), (5, 6, "Y"), (6, 7, "X")]),
        ("iob1", "I-X B-X B-Y", [(0, 1, "X")]),
        ("bioes", "S-X B-X E-X B-Y I-Y O I-X E-X", [(0, 1, "X"), (1, 3, "X")]),
        ("bmes", "B-X M-X E-X M-X S-Y", [(0, 3, "X"), (4, 5, "Y")]),
        ("bilou", "B-X L-X U-Y B-X L-Y", [(0, 2, "X"), (2, 3, "Y")]),
    ],
)
def test_worked_by_hand(scheme: str, tags: str, spans: list[tuple[int, int, str]]) -> None:
    assert read_spans(tags.split(), scheme) == spans


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["B-X I-X O"], "bio"),
        (["O O"], "bio"),
        (["B-X O"], "bio"),
        (["I-X I-X O I-Y"], "iob1"),
        (["I-X B-X O", "O I-Y"], "iob1"),
        (["I-X B-X O", *["O B-Y"] * 9], "bio"),  # many B open entities: the one I is a mistake
        (["B-X E-X S-Y"], "bioes"),
        (["B-X I-X E-X", "O S-X"], "bioes"),
        (["B-X M-X E-X", "O S-X"], "bmes"),
        (["B-X I-X L-X U-X"], "bilou"),
        (["U-X"], "bilou"),
        ([*["B-X I-X"] * 9, "O S-X"], "bio"),
        ([*["B-X E-X"] * 9, "B-X I-X"], "bioes"),
        (["B-X I-X", "O S-X"], None),
        (["B-X M-X I-X"], None),
        (["B-X E-X L-X"], None),
        (["Q-X"], None),
    ],
)
def test_the_scheme_is_found(sentences: list[str], scheme: str | None) -> None:
    files = [TagFile("f", [Sentence(1, tags=sentence.split()) for sentence in sentences])]
    if scheme is not None:
        assert find_scheme(files) == scheme
        return
    with pytest.raises(InputError, match=r"data\.scheme: "):
        find_scheme(files)


@given(st.lists(tag_sequences(), min_size=1, max_size=6))
def test_the_scheme_found_loses_the_fewest_tags(cases: list[tuple[str, list[str]]]) -> None:
    """Schemes that were passed over unread would have been no better."""
    file = TagFile("f", [Sentence(1, tags=tags) for _, tags in cases])
    lost = {scheme: sum(len(lost_tags(tags, scheme)) for _, tags in cases) for scheme in SCHEMES}
    total = sum(tag != "O" for _, tags in cases for tag in tags)
    try:
        found = find_scheme([file])
    except InputError:
        assert min(lost.values()) > total / 10
        return
    assert lost[found] == min(lost.values()) <= total / 10


@pytest.mark.parametrize(
    ("scheme", "tags", "spans", "strays"),
    [
        ("bio", "B-X E-X B-X I-X", [(2, 4, "X")], [1]),  # what goes on into a stray tag is no entity
        ("bio", "B-Y E-X B-X I-X", [(0, 1, "Y"), (2, 4, "X")], [1]),
        ("bio", "S-X O B-X", [(2, 3, "X")], [0]),
        ("bioes", "B-X M-X E-X S-X", [(3, 4, "X")], [1]),
        ("bioes", "B-X E-X L-X", [(0, 2, "X")], [2]),
        ("iob1", "I-X E-X I-X", [], [1]),
        ("bioes", "B-X I-X E-X", [(0, 3, "X")], []),
    ],
)
def test_stray_tags_and_what_they_touch_make_no_entity(
    scheme: str, tags: str, spans: list[tuple[int, int, str]], strays: list[int]
) -> None:
    assert read_among_strays(tags.split(), scheme) == (spans, strays)


@pytest.mark.parametrize(
    "tag", ["", "o", "B", "B-", "-X", "b-X", "BX", "B_X", "X-B-", "B--X", "OO", "O-", " O", "B-X-"]
)
def test_malformed_tags(tag: str) -> None:
    with pytest.raises(ValueError, match="is no tag"):
        parse_tag(tag)
    with pytest.raises(ValueError, match="is no tag"):
        read_spans(["O", tag], "bio")


def test_prefixes_of_another_scheme() -> None:
    with pytest.raises(ValueError, match="'E-X' is not in scheme bio .allowed: O, B-..., I-...."):
        read_spans(["B-X", "E-X"], "bio")

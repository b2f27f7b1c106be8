"""Cutting long documents: against a search over every place, written as the rule is worded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.pieces import cut
from dtrain.data.schemes import Span

STOPS = "。！？；!?;\n"


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, int, list[Span]]:
    text = draw(st.text(alphabet="甲乙a 。!\n", max_size=60))
    limit = draw(st.integers(2, 12))
    spans, position = [], 0
    while position < len(text) and draw(st.booleans()):
        start = position + draw(st.integers(0, 5))
        end = start + draw(st.integers(1, limit))
        if end <= len(text):
            spans.append(Span(start, end, "X"))
        position = end
    return text, limit, spans


@given(documents())
def test_each_piece_ends_behind_the_last_stop_that_fits(case: tuple[str, int, list[Span]]) -> None:
    text, limit, spans = case
    pieces = cut(text, limit, spans)
    assert "".join(text[start:end] for start, end in pieces) == text
    assert [start for start, _ in pieces][1:] == [end for _, end in pieces][:-1]

    def allowed(place: int) -> bool:
        return not any(span.start < place < span.end for span in spans)

    for start, end in pieces:
        assert 0 < end - start <= limit
        if end == len(text):
            continue
        fitting = [place for place in range(start + 1, start + limit + 1) if allowed(place)]
        stops = [place for place in fitting if text[place - 1] in STOPS]
        assert end == max(stops or fitting)
        assert len(text) - start > limit  # what fits is not cut


def test_worked_by_hand() -> None:
    assert cut("", 3) == []
    assert cut("一。二", 3) == [(0, 3)]
    assert cut("一。二三四五六七", 4) == [(0, 2), (2, 6), (6, 8)]
    assert cut("一二三四五", 4, [Span(3, 5, "X")]) == [(0, 3), (3, 5)]
    assert cut("一。二三四五", 4, [Span(0, 3, "X")]) == [(0, 4), (4, 6)]

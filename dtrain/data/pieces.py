"""Long documents cut into pieces that a model can read."""

from __future__ import annotations

from collections.abc import Iterable

from dtrain.data.schemes import Span

FULL_STOPS = frozenset("。！？；!?;\n")


def cut(text: str, limit: int, spans: Iterable[Span] = ()) -> list[tuple[int, int]]:
    """Pieces (start, end) that make up `text` in order, each of at most `limit` characters; none for an empty text.

    A piece ends after the last full stop within `limit`, or at `limit` where there is none, but never inside one of
    `spans`, the known entities, which must not be longer than `limit`.
    """
    if len(text) <= limit:
        return [(0, len(text))] if text else []
    inside = bytearray(len(text) + 1)  # 1 where a cut before this character would split an entity
    for span in spans:
        inside[span.start + 1 : span.end] = b"\1" * (span.end - span.start - 1)
    pieces = []
    start = 0
    while len(text) - start > limit:
        most = start + limit
        places = range(most, start, -1)
        end = next((i for i in places if text[i - 1] in FULL_STOPS and not inside[i]), None)
        if end is None:
            end = next(i for i in places if not inside[i])
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(text))]

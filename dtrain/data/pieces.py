"""Long documents in pieces that a model takes: cut behind the last full stop that fits."""

from __future__ import annotations

from collections.abc import Iterable

from dtrain.data.schemes import Span

FULL_STOPS = frozenset("。！？；!?;\n")


def cut(text: str, limit: int, spans: Iterable[Span] = ()) -> list[tuple[int, int]]:
    """Pieces (start, end) that make up `text` in order, each of at most `limit` characters.

    A piece ends behind the last full stop that fits, else at `limit`. Where the entities are known no piece ends
    inside one (none may be longer than `limit`), so that each has its tags whole. An empty text has no piece.
    """
    if len(text) <= limit:
        return [(0, len(text))] if text else []
    inside = bytearray(len(text) + 1)  # 1 where a cut before this character would part an entity
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

"""Texts with their entities marked, as plain text and as pieces that a page can colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """A piece of a text: an entity, with `color` the number of its type in the model's list, or text between entities."""

    text: str
    type: str | None = None
    color: int = 0
    agreed: bool = True  # whether gold and predicted both have this entity


def bracketed(text: str, spans: Sequence[Sequence[Any]]) -> str:
    """The text on one line, entities as `[characters|TYPE]`.

    Args:
        spans: (start, end exclusive, type) of entities that do not overlap, in any order.
    """
    return "".join(
        piece.text if piece.type is None else f"[{piece.text}|{piece.type}]" for piece in pieces(text, spans)
    )


def marked(example: dict[str, Any], types: Sequence[str]) -> dict[str, list[Piece]]:
    """The pieces of an example of `evaluation.json`, by `gold` and `predicted`."""
    agreed = {tuple(span) for span in example["gold"]} & {tuple(span) for span in example["predicted"]}
    return {key: pieces(example["text"], example[key], types, agreed) for key in ("gold", "predicted")}


def pieces(
    text: str, spans: Sequence[Sequence[Any]], types: Sequence[str] = (), agreed: set[tuple[Any, ...]] | None = None
) -> list[Piece]:
    """The text cut at its entities; line breaks are shown as ⏎, and each piece has at least one character."""
    text = "".join("⏎" if character in _BREAKS else character for character in text)
    cut, place = [], 0
    for start, end, kind in sorted(spans, key=tuple):
        cut.append(Piece(text[place:start]))
        color = types.index(kind) if kind in types else 0
        cut.append(Piece(text[start:end], kind, color, agreed is None or (start, end, kind) in agreed))
        place = end
    return [piece for piece in (*cut, Piece(text[place:])) if piece.text]


_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines would cut

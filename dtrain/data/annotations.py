"""Entities that stand in for annotations. Needs no torch: `dtrain check` asks it."""

from __future__ import annotations


def strangers(tagger: str, found: list[str], known: list[str]) -> str | None:
    """What is wrong where a tagger finds entities that are no annotations which a teacher knows."""
    other = [name for name in found if name not in known]
    if not other:
        return None
    return f"annotated_by: {tagger} finds {', '.join(other)}, which are no annotations (allowed: {', '.join(known)})"

"""Entities predicted by a tagger, used in place of annotations. Needs no torch: `dtrain check` imports it."""

from __future__ import annotations


def strangers(tagger: str, found: list[str], known: list[str]) -> str | None:
    """The problem with a tagger that finds types of entities which are not among the teacher's types of annotations.

    Args:
        tagger: the name of the tagger.
        found: the types of entities that the tagger predicts.
        known: the types of annotations that the teacher reads.

    Returns:
        A message that names the unknown types; None where there are none.
    """
    other = [name for name in found if name not in known]
    if not other:
        return None
    return f"annotated_by: {tagger} finds {', '.join(other)}, which are no annotations (allowed: {', '.join(known)})"

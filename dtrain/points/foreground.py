"""The foreground of a text: the words that matter for its label, from a column of its file or a file of words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from dtrain.data.files import existing_file
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems
from dtrain.data.records import read_records
from dtrain.errors import InputError
from dtrain.recipe.data import Data
from dtrain.recipe.points import KnowledgePoints
from dtrain.tasks.corpus import find_sources

KEY = "knowledge_points"


def listed_words(name: str) -> list[str]:
    """The words of a file with one word per line; raises InputError if it is missing or holds no words."""
    problems = Problems()
    lines = numbered_lines(existing_file(name, f"{KEY}.words"), name, problems)
    words = [line.strip() for _, line in lines if line.strip()]
    problems.raise_if_any()
    if not words:
        raise InputError(f"{KEY}.words: {name}: holds no words")
    return words


def words_of_column(value: Any, separator: str) -> list[str]:
    """The non-empty words in the value of a column: a list of texts, or one text that `separator` divides.

    Raises:
        ValueError: the value is anything else but null, which gives no words.
    """
    if value is None:
        return []
    found = value.split(separator) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError("must be a text, or a list of texts")
    return [word.strip() for word in found if word.strip()]


def check_foreground(spec: KnowledgePoints, data: Data) -> list[str]:
    """Problems with the words that the section names, one message each; only the first row of each file is read."""
    try:
        if spec.words is not None:
            listed_words(spec.words)
            return []
        sources = [source for source in find_sources(data) if source.part in _parts(spec, data)]
    except InputError as error:
        return error.problems
    if not sources:
        return [f"{KEY}.part: {spec.part!r} has no rows (allowed: a part with a file, or a share of data.split)"]
    problems = []
    for source in sources:
        assert spec.keywords is not None
        for line, record in read_records(source, data.header, data.columns.text, Problems()):
            if spec.keywords not in record:
                found = ", ".join(map(str, record))
                problems.append(
                    f"{KEY}.keywords: {source.name}:{line}: has no column {spec.keywords!r} (found: {found})"
                )
            break
    return problems


def _parts(spec: KnowledgePoints, data: Data) -> list[str]:
    """The parts whose files hold the rows of the section's part; a part without a file is split off train."""
    cut = {"valid": data.split.valid, "test": data.split.test}
    given = bool(getattr(data, spec.part))
    return [spec.part] if given else ["train"] if cut.get(spec.part) else []


def words_of_rows(spec: KnowledgePoints, data: Data, places: Sequence[tuple[str, int]]) -> list[list[str]]:
    """The words of each row, as its file gives them.

    Args:
        places: for each row its file, as the recipe names it, and its line there.

    Raises:
        InputError: a file is gone or has other lines than when the rows were prepared, or a value of its column is
            neither a text nor a list of texts.
    """
    if spec.words is not None:
        words = listed_words(spec.words)
        return [words for _ in places]
    wanted: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, (name, line) in enumerate(places):
        wanted[name][line].append(number)
    found: dict[int, list[str]] = {}
    sources = {source.name: source for source in find_sources(data)}
    for name, lines in wanted.items():
        if name not in sources:
            raise InputError(f"{KEY}.keywords: {name}: is no file of the recipe any more")
        for line, record in read_records(sources[name], data.header, data.columns.text, Problems()):
            for number in lines.get(line, ()):
                try:
                    found[number] = words_of_column(record.get(spec.keywords), spec.separator)  # type: ignore[arg-type]
                except ValueError as error:
                    raise InputError(f"{KEY}.keywords: {name}:{line}: {spec.keywords!r} {error}") from None
    missing = [place for number, place in enumerate(places) if number not in found]
    if missing:
        raise InputError(f"{KEY}.keywords: {missing[0][0]}:{missing[0][1]}: there is no such row any more")
    return [found[number] for number in range(len(places))]


def marked(text: str, words: Iterable[str]) -> np.ndarray:
    """Which characters are part of an occurrence of one of the words, bool [characters]."""
    found = np.zeros(len(text), dtype=bool)
    for word in words:
        start = text.find(word) if word else -1
        while start >= 0:
            found[start : start + len(word)] = True
            start = text.find(word, start + 1)
    return found


def of_tokens(spans: Iterable[tuple[int, int, int]], marks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens of a row are foreground, and which background, bool [tokens] each; special tokens are neither.

    Args:
        spans: the places of the tokens, as `Encoder.spans` gives them.
        marks: for each text of the row, which of its characters are foreground (`marked`).
    """
    inside = [
        (which, marks[which][start:end]) if which >= 0 and end > start else (-1, None) for which, start, end in spans
    ]
    of_text = np.array([which >= 0 for which, _ in inside], dtype=bool)
    foreground = np.array([part is not None and bool(part.any()) for _, part in inside], dtype=bool)
    return foreground, of_text & ~foreground


def spread(count: int, wanted: int) -> Collection[int]:
    """At most `wanted` of the numbers 0 .. count - 1, evenly spaced."""
    if count <= wanted:
        return range(count)
    return [number * count // wanted for number in range(wanted)]

"""CoNLL files: each line holds a token and its tag, blank lines separate sentences. Tokens are joined to a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dtrain.data.columns import JsonColumn
from dtrain.data.files import Source
from dtrain.data.lines import numbered_lines
from dtrain.data.problems import Problems
from dtrain.data.schemes import Span
from dtrain.recipe.values import Column

DOCUMENT_START = "-DOCSTART-"


@dataclass
class Sentence:
    """A sentence that begins at `line` of its file; `tags` or `privileged` (annotations) is None where it has none."""

    line: int
    tokens: list[str] = field(default_factory=list)
    tags: list[str] | None = None
    privileged: list[str] | None = None


class Sentences(Sequence[Sentence]):
    """The sentences of a file, stored outside of memory except for a few bytes each."""

    def __init__(self) -> None:
        self._column = JsonColumn()

    def __len__(self) -> int:
        return len(self._column)

    def append(self, sentence: Sentence) -> None:
        """Store a copy of a sentence: later changes of the object have no effect."""
        self._column.append([sentence.line, sentence.tokens, sentence.tags, sentence.privileged])

    def __getitem__(self, number: Any) -> Any:
        return Sentence(*self._column[number])

    def __iter__(self) -> Iterator[Sentence]:
        return (Sentence(*parts) for parts in self._column)


def read_conll(
    source: Source,
    text: Column,
    label: Column,
    tagged: bool,
    problems: Problems,
    privileged: Column | None = None,
) -> Sentences:
    """The sentences of one file.

    Columns are separated by tabs where a line has one, else by runs of spaces; other white space can be a token.
    Every line must have as many columns as the first.

    Args:
        text: the number of the token's column; the first column unless it is a number.
        label: the number of the tag's column; the last column unless it is a number.
        tagged: whether tags are read; a test file with a single column has none in any case.
        problems: collects what is wrong with lines, each with file and line.
        privileged: the number of the column of annotations; they are not read unless it is a number.
    """
    sentences = Sentences()
    current: Sentence | None = None
    width = first = 0
    for number, line in numbered_lines(source.path, source.name, problems, source.encoding, source.encoding_key):
        columns = split_columns(line)
        if not line.strip(" \t") or columns[0] == DOCUMENT_START:
            if current is not None:
                sentences.append(current)
            current = None
            continue
        if not width:
            width, first = len(columns), number
            labelled = tagged and not (source.part == "test" and width == 1)
            wrong = _missing(width, text, label, labelled, privileged)
            if wrong:
                problems.add(f"{source.name}:{number}: {wrong}")
                return sentences
        try:
            if not columns[0]:
                raise ValueError("has no token, or one of blanks that cannot be told from the separator (use tabs)")
            if len(columns) != width:
                raise ValueError(f"{len(columns)} column(s), but line {first} has {width}")
            token = columns[text if isinstance(text, int) else 0]
            tag = columns[label if isinstance(label, int) else -1] if tagged and width > 1 else None
            if not token:
                raise ValueError("has no token")
            if len(token) > 1 and any(character.isspace() and character != " " for character in token):
                raise ValueError(f"token {token!r} holds white space; columns are parted by tabs or blanks")
        except ValueError as error:
            problems.add(f"{source.name}:{number}: {error}")
            continue
        if current is None:
            current = Sentence(
                number, tags=None if tag is None else [], privileged=[] if isinstance(privileged, int) else None
            )
        current.tokens.append(token)
        if tag is not None and current.tags is not None:
            current.tags.append(tag)
        if current.privileged is not None and isinstance(privileged, int):
            current.privileged.append(columns[privileged])
    if current is not None:
        sentences.append(current)
    return sentences


def split_columns(line: str) -> list[str]:
    """The columns of a line; the first is empty where the line begins with a separator."""
    if "\t" in line:
        return [column.strip(" ") or column for column in line.split("\t")]
    return re.split(" +", line.rstrip(" "))


def _missing(width: int, text: Column, label: Column, tagged: bool, privileged: Column | None) -> str | None:
    """What a file with `width` columns lacks, as a message; None where nothing is missing."""
    for name, column in (("text", text), ("label", label), ("privileged", privileged)):
        if isinstance(column, int) and column >= width and (name != "label" or tagged):
            return f"has no column {column} (data.columns.{name}; {width} column(s), counted from 0)"
    if tagged and not isinstance(label, int) and privileged == width - 1:
        return f"its last column is that of data.columns.privileged; give data.columns.label, too ({width} column(s) from 0)"
    if tagged and width < 2:
        return "has 1 column; needs a token and a tag, parted by a tab or blanks"
    return None


def join_tokens(tokens: list[str]) -> tuple[str, list[int]]:
    """The text of a sentence, and the position of each token in it.

    A space is put between two tokens where ASCII letters or digits would otherwise touch, but not between two single
    characters: files with one character per line hold 2003 as four tokens.
    """
    starts: list[int] = []
    pieces: list[str] = []
    position = 0
    before = ""
    for token in tokens:
        if before and len(before) + len(token) > 2 and _runs_on(before[-1]) and _runs_on(token[0]):
            pieces.append(" ")
            position += 1
        starts.append(position)
        pieces.append(token)
        position += len(token)
        before = token
    return "".join(pieces), starts


def spread(spans: list[Span], tokens: list[str], starts: list[int]) -> list[Span]:
    """Spans of tokens as spans of characters in the text of `join_tokens`; a space inside an entity belongs to it."""
    return [Span(starts[s.start], starts[s.end - 1] + len(tokens[s.end - 1]), s.type) for s in spans]


def _runs_on(character: str) -> bool:
    return character.isascii() and character.isalnum()

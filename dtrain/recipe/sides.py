"""Several sides of a row: named texts, such as those of two languages, of which each model reads one.

data:
  train: {path: reviews.jsonl, columns: {en: text}}          # rows may have one side
  transfer: {path: pairs.tsv, columns: {en: 0, zh: 1}}       # or several: then they are pairs
teachers: [{name: english, reads: en, ...}]
students: [{name: chinese, reads: zh, ...}]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_serializer, model_validator

from dtrain.errors import suggest
from dtrain.recipe.context import Reporter
from dtrain.recipe.values import AT, Closed, Column, FilePath

if TYPE_CHECKING:
    from dtrain.recipe.training import Student, Teacher

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
ROLES = ("label", "target", "id")  # what the columns of an entry may be beside sides
TAKEN = (*ROLES, "text", "text_b", "source", "span_end")  # names that a side cannot have


def check_side(name: str) -> str:
    """The name of a side, if it is allowed.

    Raises:
        ValueError: no side can have this name.
    """
    if name in TAKEN or not NAME.fullmatch(name):
        raise ValueError(
            f"a side cannot be called {name!r}: take at most 40 letters, digits, '_' and '-', and none of "
            f"{', '.join(TAKEN)}"
        )
    return name


class FileEntry(Closed):
    """Files with columns of their own, in place of a path; for rows with several sides."""

    # a path or several; or a mapping from each side to the path of a plain file, where the same line belongs to the
    # same row
    path: list[FilePath] | dict[str, FilePath]
    # the column of each side's text, and those of `label` (for seq2seq `target`) and `id` if they differ from
    # data.columns; names, or numbers from 0 if there is no header
    columns: dict[str, Column] = {}
    # how these files are read; auto: as data.format says
    format: Literal["auto", "jsonl", "tsv", "csv", "parquet", "lines", "dataset"] = "auto"

    @field_validator("path", mode="before")
    @classmethod
    def one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def says_what_stands_where(self) -> FileEntry:
        if not self.path:
            raise ValueError("path: no file given")
        if isinstance(self.path, dict):
            if self.columns or self.format not in ("auto", "lines"):
                raise ValueError("path: plain files by side have neither columns nor another format")
        elif not self.sides:
            raise ValueError("columns: must name the column of a side at least, as {en: 0, zh: 1}")
        if len({type(column) for column in self.columns.values()}) > 1:
            raise ValueError("columns: give names (of a header) or numbers (where there is none), not both")
        for name in self.sides:
            check_side(name)
        sides = {self.columns[name] for name in self.sides if name in self.columns}
        roles = [self.columns[name] for name in ROLES if name in self.columns]
        twice = [column for column in roles if column in sides or roles.count(column) > 1]
        if twice:
            raise ValueError(f"columns: column {twice[0]!r} is given two roles")
        return self

    @model_serializer(mode="wrap")
    def as_short_as_possible(self, handler: Any) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key == "path" or value not in ({}, "auto")}

    @property
    def sides(self) -> list[str]:
        """Names of the sides that its rows have."""
        return list(self.path) if isinstance(self.path, dict) else [n for n in self.columns if n not in ROLES]

    @property
    def paths(self) -> list[str]:
        """The paths that stand for it in a list of paths; of files that belong together line by line, the first one."""
        return list(self.path.values())[:1] if isinstance(self.path, dict) else list(self.path)


@dataclass(frozen=True)
class Layout:
    """The columns of the sides of the rows in a file.

    Attributes:
        columns: each side with its column.
        whole: whether every row has all sides; otherwise a row has the sides whose columns it has, at least one.
        header: whether the first line of a table names its columns.
        label, id: the columns of label and row id, as in `data.columns`.
        beside: for plain files that belong together line by line, each side with its file, including the first one.
    """

    columns: tuple[tuple[str, Column], ...]
    whole: bool
    header: bool
    label: Column
    id: Column | None
    beside: tuple[tuple[str, str], ...] = ()


def _tag_of_path(value: Any) -> str:
    return "FileEntry" if isinstance(value, dict | FileEntry) else "str"


def _tag_of_column(value: Any) -> str:
    return "sides" if isinstance(value, dict) else "column"


if TYPE_CHECKING:
    Files = list[str]
    TextColumn = Column
else:
    Files = list[
        Annotated[Annotated[FilePath, Tag("str")] | Annotated[FileEntry, Tag("FileEntry")], Discriminator(_tag_of_path)]
    ]
    TextColumn = Annotated[
        Annotated[Column, Tag("column")] | Annotated[dict[str, Column], Field(min_length=1), Tag("sides")],
        Discriminator(_tag_of_column),
    ]


def side_of(tokenizer: str) -> str:
    """The side that a tokenizer encodes, by the tokenizer's name (`TrainSpec.tokenizer`); "" if rows have no sides."""
    return tokenizer.partition(AT)[2]


def vocabulary_of(tokenizer: str) -> str:
    """The name of a tokenizer without the side that it encodes."""
    return tokenizer.partition(AT)[0]


def check_reads(
    sides: list[str], key: str, members: Iterable[tuple[Teacher | Student, Reporter]], report: Reporter
) -> None:
    """Report members that do not say which side they read, or name another, and sides that nobody reads.

    Args:
        sides: the sides of the rows; none if a row is one text.
        key: the key of the section of rows.
        report: the reporter of the recipe.
    """
    known, read = len(report.problems), set()
    allowed = f"(allowed: {', '.join(sides)})"
    for member, of_member in members:
        if member.reads is None:
            if sides:
                of_member("reads", f"must say which side of a row it reads {allowed}")
        elif not sides:
            of_member("reads", f"{member.reads!r}: the rows of {key} have no sides (columns.text: {{NAME: COLUMN}})")
        elif member.reads not in sides:
            of_member("reads", f"no side {member.reads!r}{suggest(member.reads, sides)} {allowed}")
        else:
            read.add(member.reads)
    unread = [side for side in sides if side not in read]
    if unread and len(report.problems) == known:
        report.at(*key.split("."))(
            "columns", f"side {unread[0]!r} is read by no teacher and no student (`reads`); leave it out"
        )


def numbered(columns: Mapping[str, Column]) -> bool:
    """Whether columns are numbers."""
    return any(isinstance(column, int) for column in columns.values())

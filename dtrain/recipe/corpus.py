"""Plain text: its sources, what is kept out of it, how it is split, and which of its tokens are predicted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dtrain.recipe.values import Closed, Column, FilePath, Paths, TextEncoding


class CorpusSource(Closed):
    """Text to pre-train on: files (globs too), a folder of .txt and .jsonl files, a `datasets` folder, or hub:name.

    If `format` is set, every file of a folder is read, except those whose names begin with a dot or an underscore.
    """

    path: FilePath  # a file, a pattern of files, a folder, or hub:NAME
    format: Literal["auto", "lines", "jsonl", "tsv", "csv", "dataset"] = "auto"  # auto: by the file's suffix
    encoding: TextEncoding = "utf-8"  # text encoding of the files: utf-8, gb18030, big5, utf-16, ...
    column: Column = "text"  # the column or JSON key that holds the text; plain text has none
    header: bool = True  # whether the first line of a table names its columns
    documents: Literal["blank", "line"] = "blank"  # in plain text: a blank line ends a document, or every line is one
    # how many times an epoch reads this text, for text that is closer to the task than the rest
    repeat: Annotated[int, Field(ge=1, le=100)] = 1


class CorpusSpec(Closed):
    """The sources of the text, what is kept out of it, and how it is split."""

    # the text to learn from: paths, or sections with a path and how to read it
    sources: Annotated[list[CorpusSource], Field(min_length=1)]
    exclude: Paths = []  # files whose rows are kept out of the text, as are those of data.valid and data.test
    # share of the documents that is held out to measure the perplexity
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    dictionary: FilePath | None = None  # words for jieba, one per line: `word [count [tag]]`
    separate: bool = False  # let a token attend to its own document only, not to others packed into its row

    @field_validator("sources", mode="before")
    @classmethod
    def paths_alone(cls, value: Any) -> Any:
        listed = value if isinstance(value, list) else [value]
        return [{"path": source} if isinstance(source, str) else source for source in listed]


class MaskingSpec(Closed):
    """Which tokens are predicted. Of these, 80 % become [MASK], 10 % a random token, and 10 % stay as they are."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15  # share of the tokens that are predicted
    ngram: Annotated[int, Field(ge=1, le=10)] = 1  # the most successive words that are masked together

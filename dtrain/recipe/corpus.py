"""Plain text: where it is, what may not be in it, how it is cut, and which of its tokens are predicted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dtrain.recipe.values import Closed, Column, FilePath, Paths, TextEncoding


class CorpusSource(Closed):
    """Text to pre-train on: files (globs too), a folder of .txt and .jsonl files, a `datasets` folder, or hub:name.

    Where `format` is set, every file in a folder is read, but for names that begin with a dot or an underscore.
    """

    path: FilePath  # a file, a pattern of files, a folder, or hub:NAME
    format: Literal["auto", "lines", "jsonl", "tsv", "csv", "dataset"] = "auto"  # auto: by the file's suffix
    encoding: TextEncoding = "utf-8"  # text encoding of the files: utf-8, gb18030, big5, utf-16, ...
    column: Column = "text"  # the column or JSON key that holds the text; plain lines have none
    header: bool = True  # whether the first line of a table names its columns
    documents: Literal["blank", "line"] = "blank"  # of plain lines: a blank line ends a document, or every line is one
    # how often an epoch reads it, for text closer to the task than the rest
    repeat: Annotated[int, Field(ge=1, le=100)] = 1


class CorpusSpec(Closed):
    """Where the text is, what may not be in it, and how it is cut."""

    # the text to learn from: paths, or sections with a path and how to read it
    sources: Annotated[list[CorpusSource], Field(min_length=1)]
    exclude: Paths = []  # files whose rows must not be in the text, beside data.valid and data.test
    # share of the documents that is kept aside to measure the perplexity
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    dictionary: FilePath | None = None  # words for jieba, one a line: `word [count [tag]]`
    separate: bool = False  # a token attends to its own document only, not to others packed into its row

    @field_validator("sources", mode="before")
    @classmethod
    def paths_alone(cls, value: Any) -> Any:
        listed = value if isinstance(value, list) else [value]
        return [{"path": source} if isinstance(source, str) else source for source in listed]


class MaskingSpec(Closed):
    """Which tokens are predicted: of them, 80 % become [MASK], 10 % a random token, and 10 % stay."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15  # share of the tokens that is to be predicted
    ngram: Annotated[int, Field(ge=1, le=10)] = 1  # the most words that are masked together

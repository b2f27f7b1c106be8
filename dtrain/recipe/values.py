"""Types of values that several sections of a recipe share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticKnownError

from dtrain.knowledge.kinds import kind_names

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Size = Annotated[int, Field(gt=0, le=65536)]
Widths = Annotated[list[Annotated[int, Field(gt=0, le=512)]], Field(min_length=1)]  # of convolutions, in tokens
# Rows of a student of task seq2seq whose targets are what its teacher wrote: its best sequences, or the candidates that are
# nearest the references.
TAUGHT = ("sequences", "interpolated")
Column = Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]
FilePath = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the home folder
NamedPath = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
Paths = list[FilePath]


def _known_encoding(value: str) -> str:
    try:
        "".encode(value)  # codecs.lookup also accepts codecs that are not for text
    except (LookupError, UnicodeError, ValueError):
        examples = "utf-8, gb18030, big5, utf-16"
        raise ValueError(f"no encoding has the name {value!r} (for example: {examples})") from None
    return value


TextEncoding = Annotated[str, AfterValidator(_known_encoding)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _known_output(name: str) -> str:
    known = kind_names(stored=True)
    if name not in known:
        words = [repr(word) for word in known]
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(words[:-1])} or {words[-1]}"})
    return name


def _distinct(values: list[Any]) -> list[Any]:
    twice = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is named twice")
    return values


T = TypeVar("T")
Distinct = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]  # at least one value, and none twice
Output = Annotated[str, AfterValidator(_known_output)]  # a kind that is registered in knowledge/kinds.py

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
LONGEST_NAME = 120
OF_STUDENTS = "students"  # name of the tokenizer that all models without one of their own share
AT = "@"  # between a tokenizer's name and the side that it encodes; no model's name contains it
PATTERN = re.compile(r"[A-Za-z0-9*?\[\]._=+-]+")


def refuse_boolean(name: str, value: Any, annotation: Any) -> None:
    """Raise ValueError for true or false in place of a number: Python, and so pydantic, take them for 1 and 0."""
    inside = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
    found = [each for each in inside if isinstance(each, bool)]
    if found:
        kinds = set(_kinds(annotation))
        if kinds & {int, float} and not kinds & {bool, Any}:
            meant = "a number or a text" if str in kinds else "a number"
            raise ValueError(f"{name}: must be {meant}, found {str(found[0]).lower()}")


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types in an annotation."""
    inside = () if get_origin(annotation) is Literal else get_args(annotation)
    if not inside:
        yield annotation
    for each in inside:
        yield from _kinds(each)


class Closed(BaseModel):
    """A section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def no_boolean_as_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if name in cls.model_fields:
                refuse_boolean(name, value, cls.model_fields[name].annotation)
        return values


def check_name(name: str) -> str:
    """The name itself; raises ValueError if it cannot be the name of a folder."""
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f"must be at most {LONGEST_NAME} letters, digits, '.', '_', '-', '=', '+', starting with a letter or digit"
        )
    return name

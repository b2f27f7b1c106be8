"""A schema's types, ranges, defaults and comments in the words of the manual."""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import tokenize
import types
import typing
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

PLAIN: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"}


def type_in_words(annotation: Any, metadata: Iterable[Any] = (), title: Any = lambda model: model.__name__) -> str:
    """A field's type with its range, for example "whole number from 1 to 8, or null".

    Args:
        metadata: the constraints of the field, which pydantic removes from its annotation.
        title: returns the name of a section's model.
    """
    inside = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return type_in_words(inside[0], [*inside[1:], *metadata], title)
    limits = [limit for each in metadata for limit in (each.metadata if isinstance(each, FieldInfo) else [each])]
    if any(isinstance(each, AfterValidator) and each.func is os.path.expanduser for each in limits):
        return "path"
    if origin in (typing.Union, types.UnionType):
        parts = [type_in_words(each, limits, title) for each in inside if each is not type(None)]
        both = " or ".join(dict.fromkeys(parts))
        return f"{both}, or null" if type(None) in inside else both
    if origin is Literal:
        names = [str(each) for each in inside]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if origin is list:
        return f"list of {_several(type_in_words(inside[0], (), title))}"
    if origin is tuple:
        return f"list of {len(inside)} {_several(type_in_words(inside[0], (), title))}"
    if origin is dict:
        return f"mapping of {_several(type_in_words(inside[1], (), title))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"section {title(annotation)}"
    return f"{PLAIN[annotation]} {_range(limits)}".rstrip() if annotation in (int, float) else PLAIN[annotation]


def _several(kind: str) -> str:
    for one, many in (("text", "texts"), ("path", "paths"), ("whole number", "whole numbers"), ("number", "numbers")):
        if kind == one or kind.startswith(one + " "):
            return many + kind.removeprefix(one)
    return kind.replace("section ", "sections ", 1)


def _range(limits: Sequence[Any]) -> str:
    words = []
    bounds = ((Gt, "gt", "over"), (Ge, "ge", "at least"), (Lt, "lt", "under"), (Le, "le", "at most"))
    for kind, name, word in bounds:
        values = [getattr(each, name) for each in limits if isinstance(each, kind)]
        if values:
            words.append(f"{word} {values[0]:g}" if isinstance(values[0], float) else f"{word} {values[0]}")
    return " and ".join(words)


def default_in_words(field: FieldInfo) -> str:
    """`required`, or the default in the notation of a recipe."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        given = value.model_dump(mode="json", exclude_unset=True)
        return f"default {_flow(given)}" if given else "default: that of each of its keys"
    if isinstance(value, list) and any(isinstance(each, BaseModel) for each in value):
        return "default: one with the defaults of its keys"
    return f"default {_flow(list(value) if isinstance(value, tuple) else value)}"


def _flow(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def sentence_of(model: type[BaseModel], name: str) -> str:
    """The comment above or beside a field, of the most derived class that has one; "" if there is none.

    The schema documents each key in such a comment, where whoever changes the field sees it; the manual is made from
    these comments.
    """
    for owner in model.__mro__:
        if issubclass(owner, BaseModel) and not owner.__module__.startswith("pydantic"):
            found = comments_in(Path(inspect.getfile(owner))).get(f"{owner.__name__}.{name}")
            if found:
                return found
    return ""


@cache
def comments_in(path: Path) -> dict[str, str]:
    """The comments above and beside the fields of a file's classes, by `Class.field`, and its constants, by `NAME`."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}

    def of(node: ast.stmt) -> str:
        above: list[str] = []
        number = node.lineno - 1
        while number in comments and lines[number - 1].lstrip().startswith("#"):
            above.insert(0, comments[number])
            number -= 1
        beside = re.sub(r"^type: ignore\[.*?\]\s*#?\s*", "", comments.get(node.end_lineno or 0, ""))
        return " ".join([*above, beside]).strip()

    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = of(node)
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    found[f"{node.name}.{field.target.id}"] = of(field)
    return {name: comment for name, comment in found.items() if comment}

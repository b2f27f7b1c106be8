"""The schema's errors in the words of a recipe: the key, what was found, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dtrain.errors import suggest
from dtrain.recipe.context import Key
from dtrain.recipe.models import Architecture, architectures
from dtrain.recipe.source import kind_of


def explained(error: ValidationError, values: Any, root: type[BaseModel]) -> Iterator[tuple[Key, str]]:
    """The problems that the schema `root` found in `values`: the key of each, and what is wrong."""
    return (_explain(problem, values, root) for problem in _without_echoes(error, values))


def _without_echoes(error: ValidationError, values: Any) -> Iterator[dict[str, Any]]:
    """Merge the problems of one key: pydantic reports every alternative of a union (say, a number or a word)."""
    by_place: dict[Key, list[dict[str, Any]]] = {}
    for problem in error.errors():
        key = _without_tags(problem["loc"], values)
        by_place.setdefault(key, []).append({**problem, "loc": key})
    for key, group in by_place.items():
        first = group[0]
        if len(group) > 1 and len({p["msg"] for p in group}) > 1:
            first["msg"] = ", or ".join(p["msg"][0].lower() + p["msg"][1:] for p in group)
        yield {**first, "loc": key}


_TAGS = {  # what pydantic calls the alternatives of unions
    *("int", "str", "float", "list", "list[str]", "constrained-int", "constrained-str"),
    *("WeightSchedule", "Range", "Temperature", "word", "Terms", "by task", "FileEntry", "column", "sides"),
}


def _without_tags(path: Key, values: Any) -> Key:
    """Drop the names of union alternatives, which pydantic puts into the path, but which are no keys of the recipe."""
    key: list[str | int] = []
    node = values
    for part in path:
        inside = isinstance(node, dict) and part in node
        if not inside and isinstance(part, str) and (part in _TAGS or "[" in part):
            continue
        key.append(part)
        if inside:
            node = node[part]
        else:
            node = node[part] if isinstance(node, list) and isinstance(part, int) and part < len(node) else None
    return tuple(key)


def _fields_at(key: Key, root: type[BaseModel]) -> list[str]:
    """The keys that the schema `root` allows in the section at `key`; none if several kinds may stand there."""
    here: list[Any] = [root]
    for part in key:
        here = [inner for annotation in here for inner in _inside(annotation, part)]
    sections = {section for annotation in here for section in _sections(annotation)}
    if len(sections) != 1:
        return []
    return [field.alias or name for name, field in sections.pop().model_fields.items()]


def _inside(annotation: Any, part: str | int) -> Iterator[Any]:
    """What an annotation allows at a key or a place of a list."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is list or origin is dict:
        if isinstance(part, int) == (origin is list):
            yield arguments[-1]
    elif arguments:
        for argument in arguments:
            yield from _inside(argument, part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and part in annotation.model_fields:
        yield annotation.model_fields[str(part)].annotation


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections among the alternatives of an annotation, except a model, whose keys depend on its `type`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation is not Architecture:
            yield annotation
    elif get_origin(annotation) not in (list, dict):
        for argument in get_args(annotation):
            yield from _sections(argument)


def _explain(problem: dict[str, Any], values: Any, root: type[BaseModel]) -> tuple[Key, str]:
    """The key, and what is wrong."""
    key: Key = problem["loc"]
    kind, message, found = problem["type"], problem["msg"], problem.get("input")
    context = problem.get("ctx", {})
    shown = f", found {found!r}" if isinstance(found, str | int | float) else f", found {kind_of(found)}"
    if kind == "extra_forbidden":
        allowed = _fields_at(key[:-1], root) or _spec_fields(values, key[:-1])
        return key, f"unknown key{suggest(key[-1], allowed, cutoff=0.5)} (allowed: {', '.join(allowed)})"
    if kind == "missing":
        return key, "is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        types = context.get("expected_tags", ", ".join(map(repr, sorted(architectures()))))
        tag = context.get("tag")
        told = f"found {tag!r}{suggest(tag, _quoted(types))}" if tag else "found nothing"
        return (*key, "type"), f"allowed: {types}, {told}"
    if kind == "literal_error":
        expected = context.get("expected", "")
        return key, f"allowed: {expected}{shown}{suggest(found, _quoted(expected))}"
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        # Validators of a whole section start their message with the key.
        name, colon, rest = text.partition(": ")
        if colon and re.fullmatch(r"[a-z_]+(\.[a-z_]+|\.\d+)*", name):
            return (*key, *(int(part) if part.isdigit() else part for part in name.split("."))), rest
        return key, text
    return key, message[0].lower() + message[1:] + shown


def _quoted(expected: str) -> list[str]:
    """The names in pydantic's list of what is allowed."""
    return re.findall("'([^']*)'", expected)


def _spec_fields(values: Any, key: Key) -> list[str]:
    """The keys of a model section, which depend on its `type`, or of a section in one."""
    nodes = [None, values]
    for part in key:
        nodes.append(nodes[-1][part])
    own, above = (
        architectures().get(str(n.get("type"))) if isinstance(n, dict) else None for n in (nodes[-1], nodes[-2])
    )
    if own is None and above is not None:
        return _fields_at(key[-1:], above)
    return list(own.model_fields) if own else []

"""From a recipe's text to plain values and the line of every key, and the overrides of single keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dtrain.errors import InputError
from dtrain.recipe.context import Key


class _Loader(yaml.SafeLoader):
    """The safe loader, reading 1e-3 as a number (YAML 1.2), where YAML 1.1 wants 1.0e-3."""


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def parse(text: str) -> Any:
    """The value of a YAML text; raises yaml.YAMLError or ValueError."""
    return yaml.load(text, Loader=_Loader)  # a safe loader


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The values of a recipe's file, and the line of each key.

    Raises:
        InputError: naming file and line: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not valid UTF-8 (byte {error.object[error.start]:#04x})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    lines: dict[Key, int] = {}
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _collect_lines(root, (), lines, path)  # before construction, which merges `<<` into the nodes
        values = loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise InputError(f"{path}:{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise InputError(f"{path}:1: not usable YAML: an alias contains itself, or it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        # A ValueError comes from a scalar that looks like a date but is none.
        raise InputError(f"{path}:1: not valid YAML: {' '.join(str(error).split())}") from None
    if root is None or values is None:
        raise InputError(f"{path}:1: the recipe is empty")
    if not isinstance(values, dict):
        raise InputError(f"{path}:1: a recipe is a mapping of keys, found {kind_of(values)}")
    return _unshared(values), lines


def _unshared(value: Any) -> Any:
    """A copy that shares no values: YAML aliases share theirs, and an override changes one place only."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _collect_lines(node: yaml.Node, key: Key, lines: dict[Key, int], path: Path) -> None:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise InputError(f"{path}:{line}: a key must be a plain word")
            if name.value in seen:
                where = ".".join(map(str, (*key, name.value)))
                raise InputError(f"{path}:{line}: {where}: given twice (first in line {seen[name.value]})")
            seen[name.value] = line
            lines[(*key, name.value)] = line
            _collect_lines(value, (*key, name.value), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_lines(item, (*key, index), lines, path)


_DOTTED = ("grid", "modules", "keys")  # keys in these mappings may contain dots: the rest of the path is one key


def each_member(values: dict[str, Any], text: str) -> list[str]:
    """`students.*.epochs=3` for each student by number; other overrides as they are."""
    path, equals, raw = text.partition("=")
    parts = path.split(".")
    plain = next((i for i, part in enumerate(parts) if part in _DOTTED), len(parts))
    if "*" not in parts[:plain]:
        return [text]
    star = parts.index("*")
    node: Any = values
    for part in parts[:star]:
        index = _member(node, part) if isinstance(node, list) else None
        node = node.get(part) if isinstance(node, dict) else None if index is None else node[index]
    if not isinstance(node, list) or not node:
        raise InputError(
            f"override {text!r}: `*` stands for each member of a list, and {'.'.join(parts[:star])} is none"
        )
    each = (".".join([*parts[:star], str(number), *parts[star + 1 :]]) for number in range(len(node)))
    return [one for member in each for one in each_member(values, f"{member}{equals}{raw}")]


def apply_override(values: dict[str, Any], text: str) -> Key:
    """Set one `key.path=value` in place and return the key; list members go by number or by name."""
    path, equals, raw = text.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise InputError(f"override {text!r}: must have the form key.path=value")
    try:
        value = parse(raw)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"override {text!r}: the value is not valid YAML") from None
    node: Any = values
    key: list[str | int] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            index = _member(node, part)
            if index is None:
                names = [m["name"] for m in node if isinstance(m, dict) and "name" in m]
                allowed = ", ".join(map(str, names)) if names else "none"
                numbers = f" or a number under {len(node)}" if node else ""
                raise InputError(
                    f"override {text!r}: {'.'.join(map(str, key))} has no member {part!r} (allowed: {allowed}{numbers})"
                )
            key.append(index)
            if last:
                node[index] = value
            else:
                node = node[index]
        elif isinstance(node, dict):
            if part in _DOTTED and not last:
                inner = node.setdefault(part, {})
                rest = ".".join(parts[depth + 1 :])
                if not isinstance(inner, dict):
                    raise InputError(f"override {text!r}: {part} is not a mapping in the recipe")
                inner[rest] = value
                return (*key, part, rest)
            key.append(part)
            if last:
                node[part] = value
            else:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
        else:
            raise InputError(f"override {text!r}: {'.'.join(map(str, key))} is {kind_of(node)} and has no keys")
    return tuple(key)


def _member(items: list[Any], part: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,9}", part):
        return int(part) if int(part) < len(items) else None
    return next((i for i, m in enumerate(items) if isinstance(m, dict) and m.get("name") == part), None)


def kind_of(value: Any) -> str:
    """A YAML value in words."""
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")

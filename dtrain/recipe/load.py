"""From a file and `key.path=value` overrides to a checked Recipe, with errors that name line and key.

YAML text -> nodes (for lines) + plain values -> overrides -> schema -> grids and samples -> cross checks
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dtrain.errors import InputError
from dtrain.recipe.drawing import draw
from dtrain.recipe.models import model_types
from dtrain.recipe.resolve import Key, resolve
from dtrain.recipe.schema import Recipe
from dtrain.recipe.values import LONGEST_NAME
from dtrain.runfolder import fingerprint


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the package."""
    folder = Path(str(resources.files("dtrain") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of RECIPE: a path, or a shipped name. Raises InputError naming the shipped ones."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise InputError(f"{name}: is a folder, not a recipe file")
    near = difflib.get_close_matches(name, shipped, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{name}: no such file, and no shipped recipe of that name{hint} (shipped: {', '.join(shipped)})")


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read, override, check and expand RECIPE.

    Raises:
        InputError: one line per problem, each naming the file with its line, or the override, and the key.
    """
    path = find_recipe(name)
    values, lines = _read_yaml(path)
    overridden = [(_apply_override(values, each), text) for text in overrides or [] for each in _for_each(values, text)]

    def place(key: Key) -> str:
        for changed, text in overridden:
            if key[: len(changed)] == changed:
                return f"override {text!r}"
        line = next((lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines), 1)
        return f"{path}:{line}"

    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError([": ".join(_explain(p, values, place)) for p in _without_echoes(error, values)]) from None
    problems: list[str] = []
    teachers = list(_expand(recipe.teachers, "teachers", place, problems))
    students = list(_expand(recipe.students, "students", place, problems))
    recipe.teachers = [teacher for _, teacher in teachers]
    recipe.students = [student for _, student in students]
    if not problems:
        resolve(recipe, [index for index, _ in teachers], [index for index, _ in students], place, problems)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))  # members of a grid share their problems
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it again gives an equal Recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """The safe loader, reading 1e-3 as a number (YAML 1.2), where YAML 1.1 wants 1.0e-3."""


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a safe loader


# --- YAML with the line of every key ---------------------------------------------------------------


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not valid UTF-8 (byte {error.object[error.start]:#04x})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        root = yaml.compose(text, Loader=_Loader)
        values = _parse(text)
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
        raise InputError(f"{path}:1: a recipe is a mapping of keys, found {_kind(values)}")
    lines: dict[Key, int] = {}
    try:
        _collect_lines(root, (), lines, path)
    except RecursionError:
        raise InputError(f"{path}:1: not usable YAML: an alias contains itself, or it is nested too deeply") from None
    return _unshared(values), lines


def _unshared(value: Any) -> Any:
    """A copy in which nothing is there twice: aliases share their values, and an override means one place."""
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


# --- overrides -------------------------------------------------------------------------------------


_DOTTED = ("grid", "modules", "keys")  # keys of these hold dots themselves: the rest of the path is one key


def _for_each(values: dict[str, Any], text: str) -> list[str]:
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
    return [one for member in each for one in _for_each(values, f"{member}{equals}{raw}")]


def _apply_override(values: dict[str, Any], text: str) -> Key:
    """Set one `key.path=value` in place and return the key; list members go by number or by name."""
    path, equals, raw = text.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise InputError(f"override {text!r}: must have the form key.path=value")
    try:
        value = _parse(raw)
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
            raise InputError(f"override {text!r}: {'.'.join(map(str, key))} is {_kind(node)} and has no keys")
    return tuple(key)


def _member(items: list[Any], part: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,9}", part):
        return int(part) if int(part) < len(items) else None
    return next((i for i, m in enumerate(items) if isinstance(m, dict) and m.get("name") == part), None)


# --- explaining the schema's errors ----------------------------------------------------------------


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")


def _without_echoes(error: ValidationError, values: Any) -> Iterator[dict[str, Any]]:
    """One problem per place: a union (a number or a word) reports every alternative that it tried."""
    by_place: dict[Key, list[dict[str, Any]]] = {}
    for problem in error.errors():
        key = _without_tags(problem["loc"], values)
        by_place.setdefault(key, []).append({**problem, "loc": key})
    for key, group in by_place.items():
        first = group[0]
        if len(group) > 1 and len({p["msg"] for p in group}) > 1:
            first["msg"] = ", or ".join(p["msg"][0].lower() + p["msg"][1:] for p in group)
        yield {**first, "loc": key}


_TAGS = {
    "bert",
    "nezha",
    "tagger",
    "idcnn",
    "bilstm",
    "textcnn",
    "text_rcnn",
    "fasttext",
    "siamese",
    "bert_cnn",
    "multi_exit",
    "int",
    "str",
    "constrained-int",
    "constrained-str",
    "list[str]",
    "float",
    "WeightSchedule",
    "Range",
    "list",
}


def _without_tags(path: Key, values: Any) -> Key:
    """Pydantic puts the chosen alternative of a union into the path; it is no key of the recipe."""
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


def _fields_at(key: Key, root: Any) -> list[str]:
    """The keys that the schema of `root` allows at a place."""
    model: Any = root
    parts = iter(key)
    for part in parts:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else None
        model = _section(annotation)
        if model is None:
            return []
        if get_origin(annotation) is dict:
            next(parts, None)  # any word
    return [field.alias or name for name, field in model.model_fields.items()]


def _section(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [s for s in map(_section, get_args(annotation)) if s is not None]
    return found[0] if len(found) == 1 else None


def _explain(problem: dict[str, Any], values: Any, place: Any, root: Any = Recipe) -> tuple[str, str, str]:
    """Where it is, the key, and what is wrong."""
    key: Key = problem["loc"]
    dotted = ".".join(map(str, key))
    kind, message, found = problem["type"], problem["msg"], problem.get("input")
    context = problem.get("ctx", {})
    shown = f", found {found!r}" if isinstance(found, str | int | float) else f", found {_kind(found)}"
    if kind == "extra_forbidden":
        allowed = _fields_at(key[:-1], root) or _spec_fields(values, key[:-1])
        near = difflib.get_close_matches(str(key[-1]), allowed, 1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        text = f"unknown key{hint} (allowed: {', '.join(allowed)})"
    elif kind == "missing":
        text = "is missing"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        dotted += ".type"
        allowed_types = context.get("expected_tags", ", ".join(map(repr, sorted(model_types()))))
        found_type = context.get("tag")
        near = difflib.get_close_matches(str(found_type), model_types(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        text = f"allowed: {allowed_types}" + (f", found {found_type!r}{hint}" if found_type else ", found nothing")
    elif kind == "literal_error":
        near = difflib.get_close_matches(str(found), re.findall(r"'([^']*)'", context.get("expected", "")), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        text = f"allowed: {context.get('expected')}{shown}{hint}"
    elif kind == "value_error":
        text = message.removeprefix("Value error, ")
        # A check over several keys names its key itself.
        name, colon, rest = text.partition(": ")
        if colon and re.fullmatch(r"[a-z_.]+", name):
            key, text = (*key, *name.split(".")), rest
            dotted = ".".join(map(str, key))
    else:
        text = message[0].lower() + message[1:] + shown
    return place(key), dotted or "recipe", text


def _spec_fields(values: Any, key: Key) -> list[str]:
    """The keys of a model section, which depend on its `type`."""
    node = values
    for part in key:
        node = node[part]
    spec = model_types().get(str(node.get("type"))) if isinstance(node, dict) else None
    return list(spec.model_fields) if spec else []


# --- grids and samples --------------------------------------------------------------------------------


def _expand(members: list[Any], section: str, place: Any, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Every member of a section with the number it has in the file."""
    seen: dict[str, int] = {}
    for index, member in enumerate(members):
        for expanded in _variants(member, (section, index), place, problems):
            if expanded.name in seen:
                where = f"{place((section, index, 'name'))}: {section}.{index}.name"
                problems.append(f"{where}: {expanded.name!r} is already the name of {section}.{seen[expanded.name]}")
                continue
            seen[expanded.name] = index
            yield index, expanded


def _variants(member: Any, key: Key, place: Any, problems: list[str]) -> Iterator[Any]:
    """The member itself, or one for each drawing of its `sample` and each combination of its `grid`."""
    if not member.grid and member.sample is None:
        yield member
        return
    drawn: list[dict[str, Any]] = [{}]
    if member.sample is not None:
        try:
            drawn = draw(member.sample, str(key[0]), member.metric)
        except InputError as error:
            inner, text = error.problems[0].split(": ", 1)
            dotted = ".".join(map(str, (*key, "sample", inner)))
            problems.append(f"{place((*key, 'sample', *inner.split('.')))}: {dotted}: {text}")
            return
    base = member.model_dump(mode="json", exclude={"grid", "sample"}, exclude_unset=True)
    sources = {axis: (*key, "sample", "keys", axis) for axis in drawn[0]}
    sources |= {axis: (*key, "grid", axis) for axis in member.grid}
    short = [axis.split(".")[-1] for axis in sources]
    labels = [s if short.count(s) == 1 else axis for s, axis in zip(short, sources, strict=True)]
    digits = len(str(len(drawn) - 1))
    varied = "grid" if member.grid else "sample"
    combinations = itertools.product(enumerate(drawn), *member.grid.values())
    for number, ((drawing, values_drawn), *chosen) in enumerate(combinations):
        values = copy.deepcopy(base)
        settings = values_drawn | dict(zip(member.grid, chosen, strict=True))
        parts = [f"{drawing:0{digits}d}"] if member.sample is not None else []
        for (axis, value), label in zip(((axis, settings[axis]) for axis in sources), labels, strict=True):
            where = f"{place(sources[axis])}: {'.'.join(map(str, sources[axis]))}"
            if axis in ("name", "grid", "sample"):
                problems.append(f"{where}: cannot vary {axis!r}")
                return
            change = f"{axis}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10))}"
            try:
                _apply_override(values, change)
            except InputError as error:
                problems.append(f"{where}: {error.problems[0].removeprefix(f'override {change!r}: ')}")
                return
            parts.append(f"{label}{_word(value)}")
        values["name"] = _name("-".join([member.name, *parts]))
        try:
            yield type(member).model_validate(values)
        except ValidationError as error:
            for problem in _without_echoes(error, values):
                where, dotted, text = _explain(problem, values, lambda k: place((*key, varied)), type(member))
                problems.append(f"{where}: {'.'.join(map(str, key))}.{varied} (member {number}): {dotted}: {text}")
            return


def _name(text: str) -> str:
    """A member's name; one that is too long for a folder ends with what tells it from others that begin alike."""
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 9]}-{fingerprint(text)[:8]}"


def _word(value: Any) -> str:
    """A chosen value as a part of a folder name."""
    if isinstance(value, float | int | str):
        text = f"{value:g}" if isinstance(value, float) else str(value)
    else:
        text = yaml.safe_dump(value, default_flow_style=True)
    return re.sub(r"[^A-Za-z0-9._+]+", "_", text).strip("_") or "empty"

"""From a file and `key.path=value` overrides to a checked Recipe, with errors that name line and key.

YAML text -> plain values and lines -> overrides      source.py
-> schema, its errors in the words of a recipe        schema.py and the sections beside it, explain.py
-> grids and samples                                  grids.py, drawing.py
-> checks across sections                             resolve.py
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from pydantic import ValidationError

from dtrain.errors import InputError, suggest
from dtrain.recipe.context import Key, Reporter
from dtrain.recipe.explain import explained
from dtrain.recipe.grids import expand
from dtrain.recipe.resolve import resolve
from dtrain.recipe.schema import Recipe
from dtrain.recipe.source import apply_override, each_member, read_yaml


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
    hint = suggest(name, shipped)
    raise InputError(f"{name}: no such file, and no shipped recipe of that name{hint} (shipped: {', '.join(shipped)})")


def copy_recipe(name: str | None, file: str | None = None) -> Path:
    """Write a shipped recipe with its comments to `file`, by default NAME.yaml here; returns where it is.

    Raises:
        InputError: there is no shipped recipe of that name, or the file exists.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        found = "" if name is None else f"no shipped recipe {name!r}{suggest(name, shipped)} "
        raise InputError(f"recipes copy: {found or 'NAME is missing '}(shipped: {', '.join(shipped)})")
    return write_new(Path(file or f"{name}.yaml"), shipped[name].read_text(encoding="utf-8"))


def write_new(path: Path, text: str) -> Path:
    """Write a recipe to a new file; raises InputError if the file exists."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: exists, and is not written over; name another file, or remove it") from None
    return path


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read, override, check and expand RECIPE.

    Raises:
        InputError: one line per problem, each naming the file with its line, or the override, and the key.
    """
    path = find_recipe(name)
    values, lines = read_yaml(path)
    overridden = [
        (apply_override(values, each), text) for text in overrides or [] for each in each_member(values, text)
    ]

    def place(key: Key) -> str:
        for changed, text in overridden:
            if key[: len(changed)] == changed:
                return f"override {text!r}"
        line = next((lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in lines), 1)
        return f"{path}:{line}"

    report = Reporter(place)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        for key, text in explained(error, values, Recipe):
            report(key, text)
        raise InputError(report.problems) from None
    teachers = list(expand(recipe.teachers, "teachers", report))
    students = list(expand(recipe.students, "students", report))
    written = {teacher.name: recipe.teachers[number].name for number, teacher in teachers}
    expanded = {name: first for name, first in written.items() if name != first}
    recipe.teachers = [teacher for _, teacher in teachers]
    recipe.students = [student for _, student in students]
    if not report.problems:
        resolve(recipe, [number for number, _ in teachers], [number for number, _ in students], expanded, report)
    if report.problems:
        raise InputError(list(dict.fromkeys(report.problems)))  # members of a grid share their problems
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it again gives an equal Recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

"""Generate the reference pages of the manual from the code: run `python -m dtrain.manual.reference` after a change.

Recipe keys come from the schema and the comments beside its fields, losses from their registry and docstrings, commands from
the parser, exit codes from their constants. A test compares the pages with what this writes.
"""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dtrain import errors
from dtrain.__main__ import parser
from dtrain.losses import find_loss, loss_names
from dtrain.losses.registry import EXTRA_KEYS, Loss
from dtrain.manual.pages import FOLDER, KEYS
from dtrain.manual.wording import comments_in, default_in_words, sentence_of, type_in_words
from dtrain.recipe import Recipe
from dtrain.recipe.models import Architecture, architectures
from dtrain.tasks.rules import loss_tasks

WIDTH = 80  # columns of a terminal
MADE = "This page is made from the code: `python -m dtrain.manual.reference`."
TITLES = {
    "Architecture": "Model",
    "TrainSpec": "Teachers and students",
    "EncoderSpec": "Encoder: shape",
    "CrfSpec": "Decision of a tagger",
    "LossSpec": "Loss of a student",
    "StudentPhase": "Phase of a student",
}


class Undocumented(Exception):
    """Raised for keys, losses or options that have no description."""


def write() -> None:
    """Write every reference page into `dtrain/docs`."""
    for name, text in pages().items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def _own(thing: object) -> bool:
    """Whether a class or function belongs to this package; what other packages register is not documented here."""
    return thing.__module__.partition(".")[0] == "dtrain"


def pages() -> dict[str, str]:
    """Names and texts of the pages."""
    return {KEYS: recipe_keys(), "losses": losses(), "commands": commands(), "exit-codes": exit_codes()}


# --- recipe keys -----------------------------------------------------------------------------------


def recipe_keys(root: type[BaseModel] = Recipe) -> str:
    """The page of all recipe keys; raises Undocumented with the names of keys that have no comment."""
    found: dict[type[BaseModel], dict[str, None]] = {}
    _walk(root, "", found)
    parts = [
        "# Recipe keys",
        MADE,
        filled(
            "A recipe is one YAML file with a closed schema: an unknown key is refused with its line and the nearest "
            "known one. In the paths below N is the number of a list's member (or its name, on the command line) and "
            "NAME a key of your own. `dtrain help students.0.optimizer.lr` shows one key."
        ),
    ]
    missing = []
    for model, places in found.items():
        fields = [name for name in model.model_fields if _owner(model, name) is model and name != _kind(model)]
        if not fields and not _kind(model):
            continue
        if not _paragraphs(model):
            missing.append(model.__name__)
        parts.append(f"## {title(model)}")
        where = ", ".join(f"`{place}`" for place in places if place)
        parts += [filled(f"At {where}.")] if where else []
        parts += [filled(paragraph) for paragraph in _paragraphs(model)]
        items = []
        for name in fields:
            field = model.model_fields[name]
            sentence = sentence_of(model, name)
            if not sentence:
                missing.append(f"{model.__name__}.{name}")
            items.append(_item(field.alias or name, field, sentence))
        parts += ["\n".join(items)] if items else []
    if missing:
        raise Undocumented(f"keys without a comment, or sections without a docstring: {', '.join(missing)}")
    return _page(parts)


def title(model: type[BaseModel]) -> str:
    """The title of a section in the manual; for an architecture it is its `type`."""
    if _kind(model):
        return f"Model {typing.get_args(model.model_fields['type'].annotation)[0]}"
    return TITLES.get(model.__name__, model.__name__.removesuffix("Spec"))


def _kind(model: type[BaseModel]) -> str:
    """The word "type" if that key allows one value only, which then identifies an architecture; otherwise ""."""
    field = model.model_fields.get("type")
    return "type" if field is not None and len(typing.get_args(field.annotation)) == 1 else ""


def _walk(model: type[BaseModel], path: str, found: dict[type[BaseModel], dict[str, None]]) -> None:
    """Collect every section with its places in a recipe; inherited keys are listed at the class that defines them."""
    for owner in reversed([each for each in model.__mro__ if issubclass(each, BaseModel) and each.model_fields]):
        found.setdefault(owner, {})[path] = None
    for name, field in model.model_fields.items():
        for inner, place in _sections_in(field.annotation, f"{path}.{field.alias or name}".lstrip(".")):
            _walk(inner, place, found)


def _sections_in(annotation: object, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The sections that the type of a field allows, each with its path in a recipe."""
    if isinstance(annotation, type) and issubclass(annotation, Architecture):
        yield from ((spec, path) for spec in architectures().values() if issubclass(spec, annotation) and _own(spec))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, path
    origin = typing.get_origin(annotation)
    step = ".N" if origin is list else ".NAME" if origin is dict else ""
    for inner in typing.get_args(annotation):
        yield from _sections_in(inner, path + step)


def _owner(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The first class in the line of inheritance that has the field."""
    has = [each for each in model.__mro__ if issubclass(each, BaseModel) and name in each.model_fields]
    return has[-1]


def _paragraphs(model: type[BaseModel]) -> list[str]:
    """The paragraphs of a section's docstring, up to its list of attributes."""
    text = inspect.cleandoc(model.__doc__ or "").partition("Attributes")[0].strip()
    return text.split("\n\n") if text else []


def _item(name: str, field: FieldInfo, sentence: str) -> str:
    kind = type_in_words(field.annotation, field.metadata, title)
    return filled(f"- `{name}` ({kind}; {default_in_words(field)}): {sentence}", indent="  ")


# --- losses ----------------------------------------------------------------------------------------


def losses() -> str:
    parts = [
        "# Losses",
        MADE,
        filled(
            "Each loss gives one value a row; values are summed over rows and divided by the number of *all* rows "
            "of the global batch (for tagging: of all characters). Every loss also takes `weight`, and those that read "
            "teachers `teachers` and `weighting` (`dtrain help recipe-keys`). B is the number of rows, C of classes, K of "
            "teachers, F of features, E of exits, N of characters, T of tags; in formulas also the temperature."
        ),
    ]
    own = [loss for loss in map(find_loss, loss_names()) if _own(loss.function)]
    for task in loss_tasks():
        for loss in own:
            if loss.tasks[0] == task:
                parts += [f"## {loss.name}", *_loss(loss)]
    return _page(parts)


def _loss(loss: Loss) -> list[str]:
    text, arguments = split_docstring(inspect.getdoc(loss.function) or "")
    arguments = EXTRA_KEYS | arguments
    parts = [
        f"For {'task' if len(loss.tasks) == 1 else 'tasks'} {', '.join(loss.tasks)}. Reads: {', '.join(loss.needs)}."
    ]
    parts += text.split("\n\n")
    function = loss.function.forward if isinstance(loss.function, type) else loss.function  # type: ignore[attr-defined]
    signature = inspect.signature(function).parameters
    shapes = [name for name in signature if name in arguments and name not in loss.parameters.model_fields]
    lines = [filled(f"- `{name}`: {arguments[name]}", indent="  ") for name in shapes]
    lines += [
        _item(name, field, arguments.get(name, "")) for name, field in loss.parameters.model_fields.items()
    ]  # the keys that a recipe may give
    unnamed = [name for name in [*shapes, *loss.parameters.model_fields] if not arguments.get(name)]
    if unnamed or not text or not shapes:
        raise Undocumented(f"loss {loss.name}: its docstring lacks {', '.join(unnamed) or 'a formula or shapes'}")
    return [*map(filled, parts), "\n".join(lines)]


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before `Args:`, and the description of each argument by its name."""
    head, _, rest = text.partition("\nArgs:\n")
    arguments: dict[str, str] = {}
    name = ""
    for line in rest.partition("\n\n")[0].splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name = match[1]
            arguments[name] = match[2]
        elif name:
            arguments[name] += " " + line.strip()
    return head.strip(), arguments


# --- commands and exit codes -----------------------------------------------------------------------


def commands() -> str:
    top = parser()
    parts = ["# Commands", MADE, f"{top.description}", filled(top.epilog or "")]
    subcommands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in subcommands.choices.items():
        words = [action for action in command._actions if not action.option_strings]
        options = [action for action in command._actions if action.option_strings and action.dest != "help"]
        line = " ".join(["dtrain", name, *(_word(word) for word in words), *(["[options]"] if options else [])])
        parts += [f"## {name}", f"`{line}`", filled(_sentence(command.description or ""))]
        items = []
        for action in [*words, *options]:
            if not action.help:
                raise Undocumented(f"dtrain {name}: {action.dest} has no help")
            choices = f" (one of {', '.join(map(str, action.choices))})" if action.choices else ""
            shown = _word(action).strip("[]") if action in words else _option(action)
            items.append(filled(f"- `{shown}`{choices}: {action.help}", indent="  "))
        parts += ["\n".join(items)] if items else []
    return _page(parts)


def _word(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "*": f"[{name} ...]"}.get(str(action.nargs), name)


def _option(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"{action.option_strings[-1]}{value}"


def exit_codes() -> str:
    comments = comments_in(Path(inspect.getfile(errors)))
    names = sorted((value, name) for name, value in vars(errors).items() if name.startswith("EXIT_"))
    undocumented = [name for _, name in names if name not in comments]
    if undocumented:
        raise Undocumented(f"exit codes without a comment: {', '.join(undocumented)}")
    items = [filled(f"- `{value}`: {comments[name]}", indent="  ") for value, name in names]
    end = (
        "`dtrain` without a command says where to begin and ends with 2, so that a script whose variable is empty does not "
        "go on. `dtrain run` ends with the code of its stages. Under a bare `accelerate launch` the launcher turns every code "
        "but 0 into 1 and adds a report of its own."
    )
    return _page(["# Exit codes", MADE, "\n".join(items), filled(end)])


# --- text ------------------------------------------------------------------------------------------


def _page(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def filled(text: str, indent: str = "") -> str:
    """A paragraph, wrapped to the width of a terminal."""
    return textwrap.fill(
        " ".join(text.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    write()

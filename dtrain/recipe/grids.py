"""Expand a teacher or student with a `grid` or a `sample` into the members that it stands for."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from dtrain.errors import InputError
from dtrain.recipe.context import Key, Reporter
from dtrain.recipe.drawing import draw
from dtrain.recipe.explain import explained
from dtrain.recipe.source import apply_override
from dtrain.recipe.values import LONGEST_NAME
from dtrain.runfolder import fingerprint


def expand(members: list[Any], section: str, report: Reporter) -> Iterator[tuple[int, Any]]:
    """Every teacher or student of a section after expansion, with the number that it has in the file."""
    seen: dict[str, int] = {}
    for index, member in enumerate(members):
        for expanded in _variants(member, section, report.at(section, index)):
            if expanded.name in seen:
                text = f"{expanded.name!r} is already the name of {section}.{seen[expanded.name]}"
                report((section, index, "name"), text)
                continue
            seen[expanded.name] = index
            yield index, expanded


def _variants(member: Any, section: str, report: Reporter) -> Iterator[Any]:
    """The member itself, or one for each drawing of its `sample` and each combination of its `grid`."""
    if not member.grid and member.sample is None:
        yield member
        return
    drawn: list[dict[str, Any]] = [{}]
    if member.sample is not None:
        try:
            drawn = draw(member.sample, section, member.metric)
        except InputError as error:
            inner, text = error.problems[0].split(": ", 1)
            report(f"sample.{inner}", text)
            return
    base = member.model_dump(mode="json", exclude={"grid", "sample"}, exclude_unset=True)
    sources: dict[str, Key] = {axis: ("sample", "keys", axis) for axis in drawn[0]}
    sources |= {axis: ("grid", axis) for axis in member.grid}
    for axis, source in sources.items():
        if axis in ("name", "grid", "sample"):
            report(source, f"cannot vary {axis!r}")
            return
    short = [axis.split(".")[-1] for axis in sources]
    labels = [s if short.count(s) == 1 else axis for s, axis in zip(short, sources, strict=True)]
    digits = len(str(len(drawn) - 1))
    combinations = itertools.product(enumerate(drawn), *member.grid.values())
    for number, ((drawing, values_drawn), *chosen) in enumerate(combinations):
        values = copy.deepcopy(base)
        settings = values_drawn | dict(zip(member.grid, chosen, strict=True))
        parts = [f"{drawing:0{digits}d}"] if member.sample is not None else []
        for axis, label in zip(sources, labels, strict=True):
            written = yaml.safe_dump(settings[axis], default_flow_style=True).removesuffix("...\n")
            try:
                apply_override(values, f"{axis}={written}")
            except InputError as error:
                report(sources[axis], error.problems[0].removeprefix(f"override {f'{axis}={written}'!r}: "))
                return
            parts.append(f"{label}{_word(settings[axis])}")
        values["name"] = _name("-".join([member.name, *parts]))
        try:
            yield type(member).model_validate(values)
        except ValidationError as error:
            of_grid = report.at("grid" if member.grid else "sample", told=f"member {number}")
            for key, text in explained(error, values, type(member)):
                of_grid("", f"{'.'.join(map(str, key))}: {text}")
            return


def _name(text: str) -> str:
    """A member's name; one too long for a folder is cut and ends with a hash, which keeps it unique."""
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 9]}-{fingerprint(text)[:8]}"


def _word(value: Any) -> str:
    """A value as part of a folder name."""
    if isinstance(value, float | int | str):
        text = f"{value:g}" if isinstance(value, float) else str(value)
    else:
        text = yaml.safe_dump(value, default_flow_style=True)
    return re.sub(r"[^A-Za-z0-9._+]+", "_", text).strip("_") or "empty"

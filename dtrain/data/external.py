"""Model folders that a recipe uses as teachers without training them (`from:`): their files, and whether they fit.

Needs no torch: the launching process checks with it, and computes fingerprints from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.data.files import resolve_path
from dtrain.data.problems import shown
from dtrain.losses import find_loss
from dtrain.recipe.data import Normalization
from dtrain.recipe.models import architectures

if TYPE_CHECKING:
    from dtrain.recipe.schema import Recipe
    from dtrain.recipe.training import Student, Teacher

MODEL = ("config.json", "model.safetensors", "preprocessing.json")
# Files about how a model was trained and how well it scores: its predictions do not depend on them.
BESIDE = {"README.md", "metrics.json", "history.json", "evaluation.json", "failed.json", "done.json"}


def model_files(folder: Path) -> list[Path]:
    """The files that a model's predictions depend on, sorted: `MODEL` and its tokenizer's; none without a folder."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.name not in BESIDE)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a model folder's tokenizer."""
    return [path for path in model_files(folder) if path.name not in MODEL]


def check_external(recipe: Recipe, labels: list[str] | None = None) -> list[str]:
    """Problems, a line each, with teachers that are taken from folders and do not fit the recipe.

    Args:
        recipe: a recipe with one task.
        labels: labels of the recipe's data in the order of their numbers (for tagging, tags); None: not known yet.
    """
    return [
        problem
        for teacher in recipe.teachers
        if teacher.source is not None
        for problem in _problems(teacher, teacher.source, recipe, labels)
    ]


def _problems(teacher: Teacher, source: str, recipe: Recipe, labels: list[str] | None) -> Iterator[str]:
    key, folder, data = f"teachers.{teacher.name}.from", resolve_path(source), recipe.data
    run = Path(recipe.output_dir) / recipe.name
    if folder.resolve().is_relative_to(run.resolve()):
        yield f"{key}: {folder} is of this very run; take the folder of another run, or give this recipe another name"
        return
    missing = [name for name in MODEL if not (folder / name).is_file()]
    if missing:
        found = f"{folder} holds no {', '.join(missing)}" if folder.is_dir() else f"no such folder {folder}"
        yield f"{key}: {found} (allowed: a model folder that dtrain wrote, as runs/NAME/students/STUDENT)"
        return
    try:
        config, prepared = (_mapping(folder / name) for name in ("config.json", "preprocessing.json"))
        if "tasks" in prepared:
            yield f"{key}: {folder} is a model of several tasks (allowed: one of a single task)"
            return
        task = prepared.get("task", "classification")
        normalize = Normalization.model_validate(prepared["normalize"]).model_dump()
    except (OSError, ValueError, KeyError) as error:
        yield f"{key}: {folder} cannot be read: {' '.join(str(error).split())}"
        return
    if task != data.task:
        yield f"{key}: {folder} is a model for task {task!r} (allowed: {data.key}.task, {data.task!r})"
        return
    if config.get("privileged"):
        yield f"{key}: {folder} reads annotations beside the text (allowed: a teacher that the recipe itself trains)"
        return
    for name, value in data.normalize.model_dump().items():
        if normalize[name] != value:
            found = f"{folder} reads texts with normalize.{name} {normalize[name]}"
            yield f"{key}: {found} (allowed: that of {data.key}.normalize.{name}, {value})"
    if data.standardize or config.get("standardized"):
        unit = "is standardised by other training rows" if config.get("standardized") else "is not standardised"
        yield f"{key}: the number of {folder} {unit} (allowed: a model and a recipe without {data.key}.standardize)"
    longest = positions(config)
    if longest is not None and data.max_length > longest:
        yield f"{key}: {folder} reads {longest} tokens at most (allowed: {data.key}.max_length, {data.max_length}, or more)"
    own = labels_of(config)
    if labels is not None and own != labels:
        order = " in this order" if sorted(own) == sorted(labels) else ""
        yield f"{key}: {folder} has the labels {shown(own)} (allowed: those of {data.key}{order}, {shown(labels)})"
    for student in recipe.students:
        yield from _unequal_hints(student, teacher.name, config, key)


def _unequal_hints(student: Student, teacher: str, config: dict[str, Any], key: str) -> Iterator[str]:
    """Problems with losses that compare a student's features with the teacher's, where their widths differ."""
    width, own = width_of(config), student.model.feature_width
    for loss in student.all_losses:
        hint = {"features", "teachers.features"} <= set(find_loss(loss.type).needs)
        if hint and teacher in (loss.teachers or []) and width and own and width != own:
            yield f"{key}: has {width} features, and {student.name}, which compares its {own} by {loss.type}, another number"


def labels_of(config: dict[str, Any]) -> list[str]:
    """The labels in a model's config.json, in the order of its outputs."""
    names = config.get("id2label") or {}
    return [names[number] for number in sorted(names, key=int)]


def positions(config: dict[str, Any]) -> int | None:
    """The most tokens that a model with this config.json reads; None: any number."""
    encoder = config.get("encoder") or config
    return None if encoder.get("model_type") == "nezha" else encoder.get("max_position_embeddings")


def width_of(config: dict[str, Any]) -> int | None:
    """Width of the pooled vector of a model with this config.json; None where that is not known."""
    width = (config.get("encoder") or config).get("hidden_size")
    if isinstance(width, int) and "filters" not in config:
        return width
    spec = architectures().get(str(config.get("model_type", "")).removeprefix("dtrain-"))
    known = {name: config[name] for name in spec.model_fields if name in config} if spec else {}
    return spec.model_construct(**known).feature_width if spec else None


def _mapping(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: must be a JSON object")
    return value

"""Runs that are used as they were left: without the files that they were made from, wherever they were moved to.

A stage that reads the run folder alone takes that folder in place of a recipe. It also takes a recipe whose own files are
gone, where the run folder was made by the same recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dtrain.data.files import matching_files, resolve_path
from dtrain.errors import InputError
from dtrain.plan import Plan
from dtrain.recipe.load import load_recipe
from dtrain.recipe.models import encoder_of
from dtrain.recipe.schema import Recipe

RECIPE = "recipe.yaml"
# Sections that decide how and where a run is made and shown, but no file that is read here.
BESIDE = {"name", "output_dir", "launch", "report", "placement"}


def is_run_folder(path: Path) -> bool:
    return (path / RECIPE).is_file() and (path / "versions.json").is_file()


def load_kept(name: str, overrides: list[str], *, models: bool) -> Recipe:
    """The recipe for a stage that reads the run folder alone: of a run folder, or of a file.

    A run is taken as it is where its folder is named, or where a file that the recipe names is gone.

    Args:
        models: whether the stage takes model folders, too; for a message.

    Raises:
        InputError: another folder; or a file is gone, and the run folder was made by another recipe.
    """
    place = Path(name)
    if is_run_folder(place):
        recipe = load_recipe(str(place / RECIPE), overrides)
        recipe.keep(place)
        return recipe
    if place.is_dir():
        allowed = "a recipe, a run folder" + (", a model folder" if models else "")
        raise InputError(f"{name}: is a folder without {RECIPE} or config.json (allowed: {allowed})")
    recipe = load_recipe(name, overrides)
    gone = next(_gone(recipe), None)
    folder = Plan(recipe).folder.root
    if gone is None or not is_run_folder(folder):
        return recipe  # what is missing is told by the check of all inputs
    made_by = load_recipe(str(folder / RECIPE))
    ours, theirs = (each.model_dump(mode="json", exclude=BESIDE) for each in (recipe, made_by))
    other = [key for key in ours if ours[key] != theirs.get(key)]
    if other:
        raise InputError(
            f"{gone} (and {folder} was made by another recipe: {', '.join(other)} differ; name {folder} in place of the "
            "recipe to take it as it is)"
        )
    recipe.keep(folder)
    return recipe


def _gone(recipe: Recipe) -> Iterator[str]:
    """Files and folders that the recipe names and that are not there, a line each."""
    files: list[tuple[str, object]] = []
    for view in recipe.views():
        data = view.data
        for part in ("train", "valid", "test", "transfer"):
            for name in data.paths(part):
                try:
                    matching_files(name, ())
                except InputError as error:
                    yield f"{data.key}.{part}: {error}"
        files += [(f"{data.key}.labels", data.labels), (f"{data.key}.vocabulary.file", data.vocabulary.file)]
    for section in (recipe.teachers, recipe.students):
        for member in section:
            files += [(f"{member.name}: model.vectors", getattr(member.model, "vectors", None))]
            encoder = encoder_of(member.model)
            if encoder is not None:
                files += [(f"{member.name}: model.vocabulary", encoder.vocabulary)]
                source = encoder.pretrained or ""
                if Path(source).is_absolute() or source.startswith(".") or source.count("/") > 1:  # no hub model's name
                    files += [(f"{member.name}: model.pretrained", source)]
    files += [(f"teachers.{teacher.name}.from", teacher.source) for teacher in recipe.teachers]
    for key, path in files:
        if isinstance(path, str) and not resolve_path(path).exists():
            yield f"{key}: {path}: no such file"

"""Use a finished run as it is, without the files that it was made from, wherever its folder was moved to.

A stage that reads only the run folder accepts that folder in place of a recipe. It also accepts a recipe whose source files
are gone, if the run folder was made by the same recipe.
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
# Sections that decide where a run is, how it is made and how it is shown, but not the files that these stages read.
BESIDE = {"name", "output_dir", "launch", "report", "placement"}


def is_run_folder(path: Path) -> bool:
    return (path / RECIPE).is_file() and (path / "versions.json").is_file()


def load_kept(name: str, overrides: list[str], *, models: bool) -> Recipe:
    """Load the recipe for a stage that reads only the run folder.

    The run is used as it is if `name` is a run folder, or if a file that the recipe names is gone.

    Args:
        name: a run folder, a recipe file, or the name of a shipped recipe.
        models: whether the stage also accepts model folders; only for the error message.

    Raises:
        InputError: `name` is another folder; or a file is gone, and the run folder was made by another recipe.
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
        return recipe  # the check of all inputs reports what is missing
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
    """The files and folders that the recipe names and that do not exist, one line each."""
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
                if Path(source).is_absolute() or source.startswith(".") or source.count("/") > 1:  # not a hub model
                    files += [(f"{member.name}: model.pretrained", source)]
    files += [(f"teachers.{teacher.name}.from", teacher.source) for teacher in recipe.teachers]
    for key, path in files:
        if isinstance(path, str) and not resolve_path(path).exists():
            yield f"{key}: {path}: no such file"

"""What a model folder says of its texts: how they are prepared, and how the files were laid out that it learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dtrain.data.dataset import PreparedData
from dtrain.data.preprocessing import FILE
from dtrain.errors import InputError, suggest
from dtrain.recipe.data import Data, Normalization
from dtrain.runfolder import read_json
from dtrain.tasks.answers import Answers
from dtrain.tasks.registry import ANSWERS


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that answers from text.

    Attributes:
        task: as `data.task`.
        texts: of a row, 1 or 2.
        normalize, max_length: how a text becomes tokens; more of them are cut off, or for tagging are further pieces.
        layout: keys of the section `data` about files, and `format`, that of the files that were trained on.
        written: what forms of answers depend on.
    """

    folder: Path
    task: str
    texts: int
    normalize: Normalization
    max_length: int
    layout: dict[str, Any]
    written: dict[str, Any]

    @property
    def answers(self) -> Answers:
        return ANSWERS[self.task]

    @property
    def section(self) -> Data:
        """As a recipe's section `data` with no file that is there."""
        return Data.model_validate({"train": ["-"], "task": self.task, **self.layout})

    @property
    def prepared(self) -> PreparedData:
        """As much of prepared data as answers are written by."""
        return PreparedData(self.folder, self.written)


def read_folder(folder: Path, name: str | None = None, option: str = "task") -> ModelFolder:
    """What `dtrain.data.preprocessing` wrote.

    Args:
        name: which task, of a model of several; option: what it was given by, for messages.

    Raises:
        InputError: the folder does not say how its texts were prepared, or for a kind of task that is not known here; or
            no task is named where there are several, or an unknown one.
    """
    path = folder / FILE
    try:
        found = read_json(path)
    except OSError:
        raise InputError(_no_model_folder(folder)) from None
    tasks = found.get("tasks") if isinstance(found, dict) else None
    if tasks is None and name is not None:
        raise InputError(f"{option}: {name!r}: {folder} is a model of one task; leave it out")
    if tasks is not None:
        allowed = f"(allowed: {', '.join(tasks)})"
        if name is None:
            raise InputError(f"{option}: must say which of the tasks of {folder} to answer {allowed}")
        if name not in tasks:
            raise InputError(f"{option}: {folder} has no task {name!r}{suggest(name, tasks)} {allowed}")
        found = tasks[name]
    try:
        task = found.get("task", "classification")
        if task not in ANSWERS:
            raise InputError(f"{path}: task {task!r} is not known (allowed: {', '.join(ANSWERS)})")
        made = ModelFolder(
            folder,
            task,
            ANSWERS[task].texts or found.get("texts", 1),
            Normalization.model_validate(found["normalize"]),
            int(found["max_length"]),
            found.get("layout", {}),
            found.get("written", {}),
        )
        _ = made.section
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: does not say how texts are prepared: {reason}") from None
    return made


def _no_model_folder(folder: Path) -> str:
    """What a folder is that does not say how texts are prepared."""
    if not folder.is_dir():
        return f"{folder}: no such folder"
    if (folder / "recipe.yaml").is_file():
        return f"{folder}: is a run folder; name a model folder in it, as {folder / 'students'}/NAME"
    if (folder / "predict.py").is_file():
        return f"{folder}: is an exported model, which its own predict.py answers with"
    return f"{folder / FILE}: is missing; how the texts were prepared is not known"

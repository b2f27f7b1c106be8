"""How the texts of a model folder are prepared, and the layout of the files that the model was trained on."""

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
    """What the file of preprocessing in a model folder says about one task.

    Attributes:
        folder: the model folder.
        task: the value of `data.task`.
        texts: number of texts in a row, 1 or 2.
        normalize: how a text is normalised.
        max_length: most tokens of a row; longer ones are truncated, and for tagging cut into pieces.
        layout: keys of the section `data` about files; `format` is the format of the training files.
        written: entries of the prepared data's data.json on which the forms of answers depend.
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
        """A section `data` with this task and layout, whose only file is a placeholder."""
        return Data.model_validate({"train": ["-"], "task": self.task, **self.layout})

    @property
    def prepared(self) -> PreparedData:
        """Prepared data without rows, with what writing answers needs."""
        return PreparedData(self.folder, self.written)


def read_folder(folder: Path, name: str | None = None, option: str = "task") -> ModelFolder:
    """Read what `dtrain.data.preprocessing` wrote to a model folder.

    Args:
        name: the task to answer, for a model of several tasks.
        option: the option or argument that named it, for messages.

    Raises:
        InputError: the folder is missing, or does not say how its texts were prepared; its kind of task is unknown; it
            has several tasks and none is named, or an unknown one.
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
    except (AttributeError, KeyError, TypeError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: does not say how texts are prepared: {reason}") from None
    return made


def _no_model_folder(folder: Path) -> str:
    """The message for a folder that does not say how texts are prepared."""
    if not folder.is_dir():
        return f"{folder}: no such folder"
    if (folder / "recipe.yaml").is_file():
        return f"{folder}: is a run folder; name a model folder in it, as {folder / 'students'}/NAME"
    if (folder / "predict.py").is_file():
        return f"{folder}: is an exported model, which its own predict.py answers with"
    return f"{folder / FILE}: is missing; how the texts were prepared is not known"

"""`preprocessing.json` of a model folder: how texts are prepared before the model's tokenizer reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.data.files import SUFFIXES, suffix_of
from dtrain.recipe.data import Data
from dtrain.runfolder import write_json
from dtrain.tasks.rules import rules_of

FILE = "preprocessing.json"
# Keys of the recipe's section `data` that say how a row is laid out in a file. Files to predict are read in the same
# way unless their suffix or an option says otherwise.
LAYOUT = {"columns", "header", "encoding", "delimiter", "quoting", "scheme"}
WRITTEN = ("scheme", "span_end")  # keys of `data.json`: predictions are written in the form of the training files


def write_preprocessing(folder: Path, section: Data, info: Mapping[str, Any], reads: str | None = None) -> None:
    """Write how texts are prepared, and the layout of the files that the model was trained on.

    Args:
        folder: the model folder.
        section: the recipe's section `data`.
        info: the content of `data.json` of the rows that were prepared from it.
        reads: the side of a row that the model reads, where rows have sides.
    """
    if reads is None:
        write_json(folder / FILE, _values(section, info))
    else:
        write_json(folder / FILE, {**_values(section.of_side(reads), info), "reads": reads})


def write_preprocessing_of_tasks(folder: Path, tasks: Mapping[str, tuple[Data, Mapping[str, Any]]]) -> None:
    """Write the same for a model of several tasks, by task: `{"tasks": {NAME: ...}}`."""
    write_json(folder / FILE, {"tasks": {name: _values(section, info) for name, (section, info) in tasks.items()}})


def _values(section: Data, info: Mapping[str, Any]) -> dict[str, Any]:
    layout = section.model_dump(mode="json", include=LAYOUT)
    values = {
        "task": section.task,
        "normalize": section.normalize.model_dump(mode="json"),
        "max_length": section.max_length,
        "layout": {**layout, "format": _format(section)},
        "written": {key: info[key] for key in WRITTEN if key in info},
    }
    if rules_of(section.task).two_texts is None:
        values["texts"] = 1 if section.columns.text_b is None else 2
    return values


def _format(section: Data) -> str:
    """The format of the training files, from the recipe or their suffix; `auto` where neither tells."""
    if section.format != "auto":
        return section.format
    found = SUFFIXES.get(suffix_of(Path(section.train[0])))
    return found or ("conll" if "conll" in rules_of(section.task).formats else "auto")

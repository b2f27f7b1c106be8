"""Find the exports that were made of a model as it is now."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dtrain.runfolder import DONE, RunFolder, fingerprint, read_json


def identity_of(place: Path) -> str:
    """The fingerprint by which an export records the model in the folder `place`."""
    return fingerprint("export", read_json(place / DONE)["fingerprint"])


def exports_of(folder: RunFolder, kind: str, name: str) -> list[Path]:
    """The export folders of a model (`kind` is 'teachers' or 'students') for the folder's task, in order of their names."""
    found = []
    for path in sorted(folder.export.glob("*/metrics.json")):
        metrics = read_json(path)
        of = (metrics.get("kind"), metrics["model"], metrics.get("made_from"), metrics.get("task") or folder.task)
        if of == (kind, name, identity_of(folder.model(kind, name)), folder.task):
            found.append(path.parent)
    return found


def can_be_run(place: Path) -> bool:
    """Whether the package that runs an export is installed here."""
    return read_json(place / "metrics.json")["to"] != "onnx" or find_spec("onnxruntime") is not None

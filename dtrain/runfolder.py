"""The run folder: where things are, and how they get their final names.

A file or folder under its final name is complete: it is written under a temporary name, flushed and renamed. What a
crash leaves behind has a name starting with `.tmp-`, and the next run removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError

ASIDE = ".tmp-"
DONE = "done.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run (`<output_dir>/<name>/`).

    Attributes:
        task: the task whose data `data` is, in a run of several tasks; empty: the only task.
    """

    root: Path
    task: str = ""

    @property
    def data(self) -> Path:
        return self.root / "data" / self.task

    def of_task(self, task: str) -> RunFolder:
        """The same run with the data of one of its tasks; empty: of the only one."""
        return RunFolder(self.root, task)

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def export(self) -> Path:
        return self.root / "export"

    def model(self, kind: str, name: str) -> Path:
        """`kind` is 'teachers' or 'students'."""
        return self.root / kind / name

    def phase(self, student: str, phase: str) -> Path:
        """The folder of a student's model at the end of a phase; that of the last phase is the student's own instead."""
        return self.root / "phases" / student / phase

    def epochs(self, student: str) -> Path:
        """The weights of a student at the end of each epoch, where it keeps them."""
        return self.root / "epochs" / student

    @property
    def points(self) -> Path:
        return self.root / "points"

    def pretrained(self, phase: int) -> Path:
        """The model at the end of a phase (from 0) of pre-training; that of the last phase is the result."""
        return self.root / "pretrain" / f"phase-{phase + 1}"

    def knowledge(self, teacher: str) -> Path:
        return self.root / "knowledge" / teacher

    def tensorboard(self, *parts: str) -> Path:
        return self.root.joinpath("tensorboard", *parts)

    def checkpoints(self, *parts: str) -> Path:
        return self.root.joinpath("checkpoints", *parts)


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Flush a folder and everything in it, so that it survives a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[Any]:
    """Open a file that appears under `path` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{ASIDE}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with aside.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        _raise_if_full(path, error)
        raise
    fsync_folder(path.parent)


def follow_umask(path: Path) -> None:
    """Give a file the mode that `open` gives a new one; some libraries write files that only their owner may read.

    A new file shows that mode. Asking for the umask itself would change it for a moment, for all threads.
    """
    sample = path.with_name(f"{ASIDE}mode-{uuid.uuid4().hex[:8]}")
    sample.touch()
    try:
        path.chmod(sample.stat().st_mode)
    finally:
        sample.unlink()


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2, allow_nan=False)
        file.write("\n")


class DamagedFile(DtrainError, ValueError):
    """A file that dtrain wrote as JSON and that is not valid JSON any more."""


def read_json(path: Path) -> Any:
    """What `write_json` wrote; raises DamagedFile (and OSError where there is none)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFile(f"{path}: damaged: {error}; remove its folder and run again") from None


@contextlib.contextmanager
def publish_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends without an error, it replaces `final` as a whole."""
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f"{ASIDE}{final.name}-{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        yield aside
        fsync_tree(aside)
        if final.exists():
            # Two renames: between them the folder is absent, never half-written.
            old = final.with_name(f"{ASIDE}old-{final.name}-{uuid.uuid4().hex[:8]}")
            final.rename(old)
            aside.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            aside.rename(final)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        _raise_if_full(final, error)
        raise
    fsync_folder(final.parent)


def _raise_if_full(path: Path, error: BaseException) -> None:
    """Raise DtrainError if the error means that the disk is full.

    safetensors, Arrow and torch raise exceptions of their own for that, without an errno.
    """
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in str(error) or "quota exceeded" in str(error):
        raise DtrainError(f"{path}: no space left on its disk; the same command continues once there is") from error


def remove_leftovers(root: Path) -> None:
    """Remove temporary files and folders that a crash left under `root`."""
    for path in sorted(root.rglob(f"{ASIDE}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def fingerprint(*values: Any) -> str:
    """sha256 (first 32 hex digits) of JSON-able values; equal values give equal fingerprints anywhere."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark_done(folder: Path, identity: str, files: list[str] | None = None) -> None:
    """Record in `folder` that it is complete for the inputs named by `identity`; to be called last.

    The record also holds checksums of weight files, since damage to weights, unlike other damage, does not show when they are
    read.

    Args:
        files: the names of its files, relative to `folder`; None: all that are in it.
    """
    names = files if files is not None else [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    sizes = {name: (folder / name).stat().st_size for name in sorted(names) if name != DONE}
    sums = {name: file_fingerprint(folder / name) for name in sizes if name.endswith(".safetensors")}
    write_json(folder / DONE, {"fingerprint": identity, "files": sizes, **({"sums": sums} if sums else {})})


def drop_damaged(folder: Path) -> str | None:
    """Compare the files that have a checksum in the record, at about 1 GB a second.

    Returns:
        The name of the first file that is not as it was written, if any; the folder is then no longer marked as done.
    """
    try:
        sums = read_json(folder / DONE).get("sums", {})
        damaged = next((name for name, sum_ in sums.items() if file_fingerprint(folder / name) != sum_), None)
    except (OSError, ValueError, AttributeError):
        return None  # the folder is not marked as done
    if damaged is not None:
        (folder / DONE).unlink()
    return damaged


def is_done(folder: Path, identity: str) -> bool:
    """Whether `folder` is complete for exactly these inputs: same fingerprint, every file there in full size."""
    try:
        record = read_json(folder / DONE)
        return record["fingerprint"] == identity and all(
            (folder / name).stat().st_size == size for name, size in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False

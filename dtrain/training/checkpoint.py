"""Checkpoints of a training: complete or absent, found again by step, read without unpickling.

    checkpoints/<kind>/<name>/step-00000120/
        state.json       position, scores so far, sha256 of every other file, a checksum of its own
        tensors.safetensors  weights, optimizer state and loss scale by parameter name, whole (`Engine.state`)
        best.safetensors     the weights of the best evaluation so far

Nothing in it depends on how the model was spread over ranks: DDP, FSDP2 and ZeRO continue from each other's
checkpoints, on any number of ranks. No random state is kept: every step seeds its generators from (seed, rank, step).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dtrain.log import warn
from dtrain.runfolder import file_fingerprint, fingerprint, follow_umask, publish_folder, read_json, write_json

Found = tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]
STATE, TENSORS, BEST = "state.json", "tensors.safetensors", "best.safetensors"


class Checkpoints:
    """The checkpoints of one training, written by a thread beside the steps that follow.

    Args:
        folder: where they are kept.
        identity: names this training. Checkpoints of another one are not used, and the first that is written removes them.
        section: the settings that a person would compare, to say how those of another training differ.
        keep: how many of the newest are kept; more than one, so that there is another where one is damaged.

    Attributes:
        last: the step of the last checkpoint that was read or written completely by this object; None: of none.
    """

    def __init__(self, folder: Path, identity: str, section: Mapping[str, Any] | None = None, keep: int = 2) -> None:
        self.folder, self.identity, self.section, self.keep = folder, identity, dict(section or {}), keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.last: int | None = None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint of this training, newest first; damaged ones are included."""
        return [int(path.name.removeprefix("step-")) for path in _steps(self.folder) if self._is_own(path)]

    def newest(self, step: int | None = None) -> Found | None:
        """The newest complete checkpoint, or that of `step`, as (state, tensors, best); None where there is none.

        The tensors are mapped from the file, so that a rank reads only what it copies of them. A damaged checkpoint and
        one of another recipe, data set or teacher are skipped with a warning.
        """
        for path in _steps(self.folder):
            if step is not None and path != self.path(step):
                continue
            try:
                state = _read_state(path)
                if state["identity"] != self.identity:
                    warn(f"{path}: checkpoint not used: {self._difference(state.get('section', {}))}")
                    continue
                for name, sum_ in state["sha256"].items():
                    if file_fingerprint(path / name) != sum_:
                        raise ValueError(f"{name} is damaged")
                tensors = load_file(path / TENSORS)
                best = load_file(path / BEST) if (path / BEST).exists() else {}
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
                warn(f"{path}: checkpoint skipped: {error}")
                continue
            self.last = state["step"]
            return state, tensors, best
        return None

    def states(self) -> Iterator[dict[str, Any]]:
        """The `state.json` of each checkpoint of this training, newest first; tensors are not read.

        A `state.json` that is damaged is left out.
        """
        for path in _steps(self.folder):
            try:
                state = _read_state(path)
                if state["identity"] == self.identity:
                    yield state
            except (OSError, ValueError, KeyError):
                continue

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`, whether it is there or not."""
        return self.folder / f"step-{step:08d}"

    def save(
        self, step: int, state: dict[str, Any], tensors: dict[str, torch.Tensor], best: dict[str, torch.Tensor]
    ) -> None:
        """Begin to write the checkpoint of `step`, after waiting for the one before; the tensors must not change any more.

        Raises:
            DtrainError, OSError: the checkpoint before could not be written.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, step, state, tensors, best)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None and not self._pending.done()

    def check(self) -> None:
        """Raise why the last checkpoint could not be written, if that is known already; does not wait."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is complete under its final name; raises why it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last write to end, without raising its error."""
        self._writer.shutdown(wait=True)

    def _write(
        self, step: int, state: dict[str, Any], tensors: dict[str, torch.Tensor], best: dict[str, torch.Tensor]
    ) -> None:
        final = self.path(step)
        with publish_folder(final) as aside:
            save_file(tensors, aside / TENSORS)
            if best:
                save_file(best, aside / BEST)
            for path in aside.iterdir():
                follow_umask(path)  # safetensors writes with mode 0600
            sums = {path.name: file_fingerprint(path) for path in sorted(aside.iterdir())}
            record = {"identity": self.identity, "section": self.section, "step": step, "sha256": sums, **state}
            write_json(aside / STATE, record | {"checksum": fingerprint(record)})
        self.last = step
        # A checkpoint of a later step is damaged, or not all peers have one: otherwise training would have continued
        # from it. It does not count among those that are kept.
        own = [path for path in _steps(self.folder) if path.name <= final.name and self._is_own(path)]
        for other in _steps(self.folder):
            if other not in own[: self.keep]:
                shutil.rmtree(other, ignore_errors=True)

    def _is_own(self, path: Path) -> bool:
        try:
            return bool(read_json(path / STATE)["identity"] == self.identity)
        except (OSError, ValueError, KeyError):
            return False

    def _difference(self, other: Mapping[str, Any]) -> str:
        before, now = _flat(other), _flat(self.section)
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if not before or not keys:
            return "the settings are the same, but its data or its teachers were others"
        shown = ", ".join(f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in keys[:5])
        return f"made with {shown}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a training, and the folders above that this leaves empty."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in list(folder.parents)[:2]:
        try:
            os.rmdir(parent)
        except OSError:
            return


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_json(path / STATE)
    if state.pop("checksum", None) != fingerprint(state):
        raise ValueError(f"{STATE} is damaged")
    return state


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []

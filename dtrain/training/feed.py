"""The feed: row numbers in, batches out.

    rows' tokens and labels ─┐  read by a thread while the step before is computed,
    stored teacher outputs ──┴─▶ on a GPU pinned and copied in a stream of its own ──▶ Batch on the device
    teachers that run beside the student ────────────────────────────────────────────────┘ when it is asked for

Students of a group that read the same rows share what one of them has read.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dtrain.data.batch import Batch, ByName
from dtrain.data.batching import training_batches
from dtrain.teachers.online import OnlineTeacher
from dtrain.teachers.sources import StoredTeacher, TeacherSource

AHEAD = 2  # micro-batches that are read before they are needed


class Rows(Hashable, Protocol):
    """The training rows, as far as the loop needs to know them."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int [N]."""


class Reading:
    """Reads batches ahead in a thread, and keeps the latest ones for all students that read the same rows.

    A batch is read in pieces: its rows, and the stored outputs of each teacher.

    Args:
        batches: how many batches are kept, those read ahead included.
    """

    def __init__(self, device: torch.device, batches: int = 2 + AHEAD) -> None:
        self.device, self.batches = device, batches
        self.reads = 0
        self._kept: OrderedDict[bytes, dict[Hashable, Future[_Copied]]] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None
        self._stream: Any = None

    def start(self, index: np.ndarray, piece: Hashable, read: Callable[[], Any]) -> Future[_Copied]:
        """Begin to read a piece of the batch of rows `index` [B], unless that was begun already and is still kept."""
        key = index.tobytes()
        pieces = self._kept.setdefault(key, {})
        self._kept.move_to_end(key)
        while len(self._kept) > self.batches:
            self._kept.popitem(last=False)
        if piece not in pieces:
            self.reads += 1
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="feed")
            pieces[piece] = self._thread.submit(self._read, read)
        return pieces[piece]

    def take(self, index: np.ndarray, piece: Hashable, read: Callable[[], Any]) -> Any:
        """Wait for a piece; returns it on the device, ready for the current CUDA stream."""
        return self.start(index, piece, read).result().here()

    def forget(self) -> None:
        """Drop what was read; it is read again when it is asked for."""
        self._kept.clear()

    def close(self) -> None:
        """Wait for what is being read, and forget everything."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        self.forget()

    def _read(self, read: Callable[[], Any]) -> _Copied:
        found = read()
        if self.device.type != "cuda":
            return _Copied(found, None)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            # Without pinned memory `non_blocking` would wait for the copy all the same.
            moved = _each_tensor(found, lambda t: t.pin_memory().to(self.device, non_blocking=True))
            event = torch.cuda.Event()
            event.record(self._stream)
        return _Copied(moved, event)


@dataclass(frozen=True)
class _Copied:
    """Tensors on the device, and the CUDA event after which their copies are complete (None on a CPU)."""

    value: Any
    event: Any

    def here(self) -> Any:
        if self.event is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.event)
            # The allocator must not give the memory away while this stream still reads it.
            _each_tensor(self.value, functools.partial(_used_by, stream))
        return self.value


class Feed:
    """The batches of one model's training.

    Args:
        rows: what it is trained on.
        collate: gives the batch of some rows, on the CPU and without teachers; it may be called by a thread.
        units: how much each row counts in the mean loss (1, or for tagging its characters), int [N].
        teachers: by name, the source of a teacher's outputs and the kinds that are read from it.
        online: the same for teachers that run beside the student; a teacher may be in both.
        device: where batches go.
        reading: shared by a group of students that read the same rows; None: a new one.
        piece: feeds of a group that collate rows in the same way have an equal `piece`, and share the batches.
        perturb: changes a batch when it is handed out, by torch's random generator of the step (token noise).
        draw: called before each step with (global batch, epoch, step); it may set `units` of these rows, as masked
            language modelling does. With it, nothing is read ahead of the current step.
    """

    def __init__(
        self,
        rows: Rows,
        collate: Callable[[np.ndarray], Batch],
        units: np.ndarray,
        teachers: Mapping[str, tuple[TeacherSource, Sequence[str]]] | None = None,
        *,
        online: Mapping[str, tuple[OnlineTeacher, Sequence[str]]] | None = None,
        device: torch.device,
        reading: Reading | None = None,
        piece: Hashable = None,
        perturb: Callable[[Batch], Batch] | None = None,
        draw: Callable[[np.ndarray, int, int], None] | None = None,
    ) -> None:
        self.rows, self.units = rows, units
        self._collate, self._piece = collate, ("rows", piece)
        self._teachers = {name: (source, list(kinds)) for name, (source, kinds) in (teachers or {}).items() if kinds}
        self._online = {name: (source, list(kinds)) for name, (source, kinds) in (online or {}).items() if kinds}
        for source, kinds in self._online.values():
            source.expect(kinds)
        self._reading, self._own = reading or Reading(device), reading is None
        self._perturb = perturb
        self.draw = draw

    def epoch(self, seed: int, epoch: int, batch_size: int | None, batch_tokens: int | None) -> Sequence[np.ndarray]:
        """The global batches of an epoch, in order, as positions in `rows`; see `training_batches`."""
        return _batches(self.rows, seed, epoch, batch_size, batch_tokens)

    def steps(self, epochs: int, seed: int, batch_size: int | None, batch_tokens: int | None) -> int:
        """The number of batches in all epochs. With `batch_tokens` every epoch has to be cut, which takes time."""
        if batch_size is not None:
            return epochs * -(-len(self.rows.lengths) // batch_size)
        return sum(len(self.epoch(seed, epoch, batch_size, batch_tokens)) for epoch in range(epochs))

    def first_rows(self) -> list[int]:
        """The position of one row of each kind of batch: of the first row, for several tasks the first of each task."""
        return [0]

    def begin_step(self, batch: np.ndarray, epoch: int, step: int) -> None:
        """Called before the micro-batches of a global batch are asked for."""
        if self.draw:
            self._reading.forget()  # the same rows give another batch in another step
            self.draw(batch, epoch, step)

    def read_ahead(self, indices: Iterable[np.ndarray]) -> None:
        """Begin to read the next micro-batches; at most `AHEAD`, as a group keeps no more."""
        for index in indices:
            for piece, read in self._pieces(index):
                self._reading.start(index, piece, read)

    def batch(self, index: np.ndarray) -> Batch:
        """The rows at positions `index` [B], with their teachers' outputs, on the device."""
        pieces = [self._reading.take(index, piece, read) for piece, read in self._pieces(index)]
        found: Batch = pieces[0]
        stored = iter(pieces[1:])
        clean = found
        if self._perturb:
            found = self._perturb(found)
        teachers: dict[str, ByName] = {}
        for name, (source, kinds) in self._teachers.items():
            teachers[name] = next(stored) if isinstance(source, StoredTeacher) else source.outputs(found, kinds)
        for name, (teacher, kinds) in self._online.items():
            # Without the student's noise: like stored outputs, these are the teacher's outputs for the unchanged text.
            teachers[name] = teachers.get(name, {}) | teacher.outputs(clean, kinds)
        return replace(found, teachers=teachers)

    def close(self) -> None:
        """Stop the thread that reads; a shared `Reading` is closed by its group."""
        if self._own:
            self._reading.close()

    def _pieces(self, index: np.ndarray) -> list[tuple[Hashable, Callable[[], Any]]]:
        """What has to be read for a batch: the rows first, then each stored teacher's outputs."""
        found: list[tuple[Hashable, Callable[[], Any]]] = [(self._piece, functools.partial(self._collate, index))]
        for name, (source, kinds) in self._teachers.items():
            if isinstance(source, StoredTeacher):
                ids = self.rows.ids[index]  # type: ignore[attr-defined]
                found.append(((name, tuple(kinds)), functools.partial(source.read, ids, kinds)))
        return found


@lru_cache(maxsize=2)
def _batches(
    rows: Rows, seed: int, epoch: int, batch_size: int | None, batch_tokens: int | None
) -> Sequence[np.ndarray]:
    """Cached, so that models trained together share the arrays."""
    return training_batches(rows.lengths, seed, epoch, batch_size=batch_size, batch_tokens=batch_tokens)


def _used_by(stream: Any, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def _each_tensor(value: Any, work: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return work(value)
    if isinstance(value, Batch):
        return value.map(work)
    if isinstance(value, dict):
        return {name: _each_tensor(inner, work) for name, inner in value.items()}
    return value

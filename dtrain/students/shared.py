"""What several students read in one step is read, collated and sent to the device once."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from dtrain.data import Part
from dtrain.knowledge.reader import StoreReader


class Memo:
    """The last few values that were read, on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.reads = 0
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def __call__(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """`read(*arguments)`, or what it gave for the same arguments a moment ago."""
        key = (read, *(a.tobytes() if isinstance(a, np.ndarray) else a for a in arguments))
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self.reads += 1
            self._kept[key] = self._read(read, arguments)
            if len(self._kept) > self.size:
                self._kept.popitem(last=False)
        value = self._kept[key]
        if self.device.type == "cuda":
            self._hand_over(value)
        return value

    def _read(self, read: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.device.type != "cuda":
            return _each_tensor(read(*arguments), lambda tensor: tensor.to(self.device))
        # Copies are made in one stream, whichever student asked first; others wait for that stream.
        with torch.cuda.stream(torch.cuda.default_stream(self.device)):
            return _each_tensor(read(*arguments), lambda tensor: tensor.to(self.device, non_blocking=True))

    def _hand_over(self, value: Any) -> None:
        own, source = torch.cuda.current_stream(self.device), torch.cuda.default_stream(self.device)
        if own == source:
            return
        own.wait_stream(source)

        def record(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(own)
            return tensor

        _each_tensor(value, record)


def _each_tensor(value: Any, work: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return work(value)
    if isinstance(value, dict):
        return {name: _each_tensor(inner, work) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_each_tensor(inner, work) for inner in value)
    return value


class SharedRows(Part):
    """Rows whose last batches are remembered."""

    memo: Memo

    @classmethod
    def of(cls, part: Part, memo: Memo) -> SharedRows:
        shared = cls(**{field.name: getattr(part, field.name) for field in dataclasses.fields(part)})
        object.__setattr__(shared, "memo", memo)  # a Part is frozen
        return shared

    def collate(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        return dict(self.memo(super().collate, index))

    def collate_labels(self, index: np.ndarray) -> torch.Tensor:
        return cast(torch.Tensor, self.memo(super().collate_labels, index))

    def collate_tags(self, index: np.ndarray) -> torch.Tensor:
        return cast(torch.Tensor, self.memo(super().collate_tags, index))


class SharedStore:
    """A teacher's store whose last answers are remembered; read as the `StoreReader` behind it."""

    def __init__(self, store: StoreReader, memo: Memo) -> None:
        self._store, self._memo = store, memo

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("logits", "features", "ragged"):
            return found
        return lambda *arguments: self._memo(found, *arguments)

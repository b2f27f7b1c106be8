"""Stopping on request: a signal or a STOP file sets a flag, and the loop leaves after a complete checkpoint."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from dtrain.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
FILE_SECONDS = 1.0
_KEY = "dtrain/stop"


class StopRequest:
    """Whether someone asked to stop. One a process; `agreed` and `anywhere` tell every rank."""

    def __init__(self, world: World, run_folder: Path) -> None:
        """Take over the process's signals, from the main thread."""
        self.world = world
        self.file = run_folder / "STOP"
        self.reason: str | None = None
        self._looked = 0.0
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            # Asked twice: the default action ends the process at once; files under final names stay whole.
            signal.signal(number, signal.SIG_DFL)
        self.reason = signal.Signals(number).name

    def here(self) -> bool:
        """Asked on this rank; the file is looked for at most once a second."""
        now = time.monotonic()
        if self.reason is None and now - self._looked > FILE_SECONDS:
            self._looked = now
            if self.file.exists():
                self.reason = f"file {self.file}"
        return self.reason is not None

    def agreed(self) -> bool:
        """Asked on any rank; a collective, so that all ranks stop at the same step."""
        return self.world.any(self.here())

    def anywhere(self) -> bool:
        """Asked on any rank, without a collective: for ranks that each do work of their own."""
        store = self.world.store()
        if self.here():
            if store is not None:
                store.set(_KEY, self.reason or "")
            return True
        if store is not None and store.check([_KEY]):
            self.reason = store.get(_KEY).decode()
        return self.reason is not None

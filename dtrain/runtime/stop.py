"""Stopping on request: a signal, a STOP file or a time limit asks for it; the loop ends after a complete checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dtrain.errors import DtrainError
from dtrain.runtime import signals
from dtrain.runtime.distributed import World

FILE_SECONDS = 1.0
_KEY = "dtrain/stop"


class StopRequest:
    """Whether someone asked this launch to stop. Each process has one; `agreed`, `ask` and `anywhere` ask all ranks.

    Attributes:
        reason: who asked, as 'SIGTERM' or 'time limit'; None as long as nobody has.
    """

    def __init__(self, world: World, run_folder: Path) -> None:
        """Listens to the process's signals, from the main thread."""
        self.world = world
        self.file = run_folder / "STOP"
        self.reason: str | None = None
        self._looked = 0.0
        signals.listen()

    def here(self) -> bool:
        """Whether this rank was asked; the file is looked for at most once a second."""
        if self.reason is None and signals.received:
            self.reason = signals.received[0]
        if self.reason is None and signals.time_is_up():
            self.reason = "time limit"
        now = time.monotonic()
        if self.reason is None and now - self._looked > FILE_SECONDS:
            self._looked = now
            if self.file.exists():
                self.reason = f"file {self.file}"
        return self.reason is not None

    def agreed(self) -> bool:
        """Whether any rank was asked (a collective, so that all ranks stop at the same step)."""
        return self.ask()()

    def ask(self, trouble: str | None = None) -> Callable[[], bool]:
        """`agreed` without waiting (a collective): returns a function that gives the answer, which every rank calls.

        A step may be made between the two, so that no rank waits for the others.

        Args:
            trouble: why this rank cannot go on with what all ranks do together. The function that is returned raises it
                on every rank as a DtrainError with the same message, which is then printed once.
        """
        answer = self.world.begin_any(self.here() or trouble is not None)
        return lambda: answer() and self._share(trouble)

    def _share(self, trouble: str | None) -> bool:
        told = self.world.gather_objects((self.reason, trouble))
        # The same reason on every rank, so that the message with it is printed once.
        self.reason = next((reason for reason, _ in told if reason), None)
        for _, found in told:
            if found is not None:
                raise DtrainError(found)
        return self.reason is not None

    def anywhere(self) -> bool:
        """Whether any rank was asked, without a collective: for ranks that do work of their own."""
        store = self.world.store()
        if self.here():
            if store is not None:
                store.set(_KEY, self.reason or "")
            return True
        if store is not None and store.check([_KEY]):
            self.reason = store.get(_KEY).decode()
        return self.reason is not None

"""Who is here: a roll call before the ranks connect, and signs of life while they work.

Both go through the launch's key-value store, not through collectives, so they name who is missing instead of
timing out: a rank that never arrives, a process that hangs in the kernel or was stopped, a machine that is gone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore

from dtrain.errors import EXIT_FAILED, DtrainError

POLL_SECONDS = 0.1
LONGEST_PULSE = 5.0  # seconds between signs of life
LAST_WORDS = 10.0  # seconds for the main thread to end by itself once the store is gone


def open_store(host: str, port: int, *, serve: bool, seconds: float) -> TCPStore:
    """Connect to the store at `host:port`, or be it.

    Raises:
        DtrainError: nobody answers there within `seconds`.
    """
    if not serve:
        _wait_for_server(host, port, seconds)
    try:
        # Others of this process may serve the same port: torch's own rendezvous does.
        limit = timedelta(seconds=max(seconds, 1))
        return TCPStore(host, port, is_master=serve, timeout=limit, wait_for_workers=False, multi_tenant=True)
    except (DistError, RuntimeError) as error:
        raise DtrainError(f"{host}:{port}: no rendezvous: {_first_line(error)}") from None


def _wait_for_server(host: str, port: int, seconds: float) -> None:
    """torch would print a page of C++ frames when it gives up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                first = f"the first machine ({host}:{port}) did not answer within {seconds:g} s"
                raise DtrainError(f"{first}: {error.strerror or error}") from None
        time.sleep(POLL_SECONDS)


def rank_store(environment: Mapping[str, str], seconds: float) -> TCPStore:
    """The store of this launch, before there is a process group."""
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    return open_store(host, port, serve=_serves(environment), seconds=seconds)


def _serves(environment: Mapping[str, str]) -> bool:
    """Whether this rank is the store; of a launch of torchrun's kind the launcher is."""
    return environment["RANK"] == "0" and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def roll_call(store: Store, who: str, index: int, count: int, seconds: float) -> None:
    """Return once all `count` of `who` ('rank', 'machine') are here.

    Raises:
        DtrainError: naming those that did not come in time; without words on all but the first that did.
    """
    keys = [f"dtrain/here/{who}/{number}" for number in range(count)]
    store.set(keys[index], "")
    deadline = time.monotonic() + seconds
    while not store.check(keys):
        if time.monotonic() > deadline:
            here = [store.check([key]) for key in keys]
            missing = [number for number, came in enumerate(here) if not came]
            if missing:
                first = here.index(True) == index
                raise DtrainError([f"{names(who, missing)} of {count} did not arrive within {seconds:g} s"] * first)
        time.sleep(POLL_SECONDS)


def names(who: str, numbers: list[int]) -> str:
    """'rank 3', 'ranks 1, 2'; long lists are cut."""
    shown = ", ".join(map(str, numbers[:16])) + (", ..." if len(numbers) > 16 else "")
    return f"{who}{'s' if len(numbers) > 1 else ''} {shown}"


def pulse_seconds(timeout: float) -> float:
    return min(LONGEST_PULSE, timeout / 5)


def heard_within(timeout: float) -> float:
    """Seconds in which a rank that gives no sign of life for `timeout` is surely found: collectives wait longer."""
    return timeout + 4 * pulse_seconds(timeout)


class Pulse(threading.Thread):
    """Gives a sign of life of this rank, and ends the process when another rank gives none for `seconds`.

    A thread, since the main one may be in a collective that waits for the very rank that is lost. Ranks do not
    leave this way when one *fails*: its launcher ends the others at once, and their collectives raise.
    """

    def __init__(self, store: TCPStore, rank: int, size: int, seconds: float) -> None:
        super().__init__(name="pulse", daemon=True)
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.every = pulse_seconds(seconds)
        self._keys = [f"dtrain/pulse/{number}" for number in range(size)]
        self._left = [f"dtrain/left/{number}" for number in range(size)]
        self._over = threading.Event()
        for key in self._keys:
            store.add(key, 0)  # so that reading another's never waits

    def leave(self) -> None:
        """Say that this rank ends on purpose, and stop watching."""
        self._over.set()
        self.join(timeout=1)
        try:
            if not self.is_alive():
                self.store.set(self._left[self.rank], "")
        except (DistError, RuntimeError):
            pass  # the store has left before

    def outlast(self, seconds: float) -> None:
        """Return when all other ranks have left, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.store.check(self._left) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def run(self) -> None:
        heard = [time.monotonic()] * self.size
        counts: list[bytes] = [b""] * self.size
        try:
            while not self._over.wait(self.every):
                self.store.add(self._keys[self.rank], 1)
                now = time.monotonic()
                for number, count in enumerate(self.store.multi_get(self._keys)):
                    if count != counts[number]:
                        counts[number], heard[number] = count, now
                # This process was itself stopped or starved: nobody can be judged by a clock that stood still.
                heard[self.rank] = now
                silent = [n for n in range(self.size) if now - heard[n] > self.seconds and not self._has_left(n)]
                if silent:
                    self._end(silent)
        except (DistError, RuntimeError) as error:
            if not self._over.wait(LAST_WORDS):
                self._exit(f"rank {self.rank} lost the connection to the first machine ({_first_line(error)})")

    def _has_left(self, number: int) -> bool:
        return self.store.check([self._left[number]])

    def _end(self, silent: list[int]) -> None:
        speaker = next(n for n in range(self.size) if n not in silent)
        line = f"{names('rank', silent)} of {self.size} gave no sign of life for {self.seconds:g} s (launch.timeout)"
        self._exit(f"{line}; the same command continues from the last checkpoint" if speaker == self.rank else "")

    def _exit(self, line: str) -> None:
        if line:
            print(f"dtrain: {line}", file=sys.stderr, flush=True)
        os._exit(EXIT_FAILED)


_pulse: Pulse | None = None


def start_pulse(store: TCPStore, rank: int, size: int, seconds: float) -> None:
    """Watch the other ranks from now on, and be watched; once a process."""
    global _pulse
    _pulse = Pulse(store, rank, size, seconds)
    _pulse.start()


def stop_pulse() -> None:
    """This rank is about to end on purpose."""
    if _pulse is not None:
        _pulse.leave()


def leave_last() -> None:
    """Where this rank is the store, let others end first: they may be asking it whether to go on, or to stop."""
    if _pulse is not None and _serves(os.environ):
        _pulse.outlast(LAST_WORDS)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__

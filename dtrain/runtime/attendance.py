"""Which ranks are present: they wait for each other before they connect, and give signs of life while they work.

Both go through the launch's key-value store and not through collectives. So a rank that never arrives, hangs in the
kernel, was stopped, or whose machine is gone is named, where a collective would only time out.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import psutil
from torch.distributed import DistError, Store, TCPStore

from dtrain.errors import EXIT_FAILED, DtrainError

POLL_SECONDS = 0.1
LONGEST_PULSE = 5.0  # seconds between signs of life
LAST_WORDS = 10.0  # seconds in which the main thread may end by itself once the store is gone


def wait_until(condition: Callable[[], bool], seconds: float = math.inf) -> bool:
    """Check `condition` ten times a second until it holds; returns whether it did within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def open_store(host: str, port: int, *, serve: bool, seconds: float) -> TCPStore:
    """The key-value store at `host:port`: served by this process with `serve`, otherwise a connection to it.

    Raises:
        DtrainError: nobody answers there within `seconds`, or the port cannot be served.
    """
    if not serve:
        _wait_for_server(host, port, seconds)
    try:
        # multi_tenant: torch's own rendezvous may serve the same port in this process.
        limit = timedelta(seconds=max(seconds, 1))
        return TCPStore(host, port, is_master=serve, timeout=limit, wait_for_workers=False, multi_tenant=True)
    except (DistError, RuntimeError) as error:
        raise DtrainError(f"{host}:{port}: no rendezvous: {_first_line(error)}") from None


def _wait_for_server(host: str, port: int, seconds: float) -> None:
    """Return once something listens there; torch itself prints a page of C++ frames when it gives up."""
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
    """The store of this launch, before there is a process group; `environment` is what the launcher set."""
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    return open_store(host, port, serve=_serves(environment), seconds=seconds)


def _serves(environment: Mapping[str, str]) -> bool:
    """Whether this rank serves the store; under torchrun the launcher does."""
    return environment["RANK"] == "0" and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def rendezvous(store: Store, who: str, index: int, count: int, seconds: float) -> None:
    """Return once all `count` processes have called this function, each with its own `index`.

    Args:
        who: what they are, for the message: 'rank' or 'machine'.
        seconds: how long to wait for the others.

    Raises:
        DtrainError: naming those that did not come in time; it has a message only in the first process that came.
    """
    keys = [f"dtrain/here/{who}/{number}" for number in range(count)]
    store.set(keys[index], "")
    if wait_until(lambda: store.check(keys), seconds):
        return
    here = [store.check([key]) for key in keys]
    missing = [number for number, came in enumerate(here) if not came]
    if missing:
        first = here.index(True) == index
        raise DtrainError([f"{names(who, missing)} of {count} did not arrive within {seconds:g} s"] * first)


def names(who: str, numbers: list[int]) -> str:
    """'rank 3' or 'ranks 1, 2'; at most 16 are listed."""
    shown = ", ".join(map(str, numbers[:16])) + (", ..." if len(numbers) > 16 else "")
    return f"{who}{'s' if len(numbers) > 1 else ''} {shown}"


def pulse_seconds(timeout: float) -> float:
    """Seconds between two signs of life of a rank."""
    return min(LONGEST_PULSE, timeout / 5)


def heard_within(timeout: float) -> float:
    """Seconds after which a rank that gives no sign of life for `timeout` has surely been found.

    Collectives wait at least this long, so that the message that names the rank comes before theirs.
    """
    return timeout + 4 * pulse_seconds(timeout)


class Heartbeat(threading.Thread):
    """A thread that gives signs of life of this rank, and ends the process when another rank gives none for `seconds`.

    The main thread cannot do it: it may be in a collective that waits for the rank that is lost. Under gloo a rank
    that *fails* is not found here: its launcher ends the others at once, and their collectives raise. Under NCCL they
    raise nothing: the main thread waits for the device, and hears no signal. So there, when a rank has failed or was
    killed and the main thread stands still for `LAST_WORDS`, the process ends without a message: that rank, or the
    launcher, gives the reason.
    """

    def __init__(self, store: Store, rank: int, size: int, seconds: float, *, raises: bool = True) -> None:
        """`raises`: whether a collective raises when another rank is gone, as gloo's do."""
        super().__init__(name="pulse", daemon=True)
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.every = pulse_seconds(seconds)
        self._raises = raises
        self._failed = [f"dtrain/failed/{number}" for number in range(size)]
        self._here = [f"dtrain/process/{number}" for number in range(size)]
        store.set(self._here[rank], f"{_machine()} {os.getpid()}")
        self._keys = [f"dtrain/pulse/{number}" for number in range(size)]
        self._left = [f"dtrain/left/{number}" for number in range(size)]
        self._over = threading.Event()
        for key in self._keys:
            store.add(key, 0)  # reading a key that is not there would wait for it

    def leave(self, failed: bool = False) -> None:
        """Say that this rank ends on purpose, or that it has `failed`, and stop watching."""
        self._over.set()
        self.join(timeout=1)
        try:
            if failed:
                self.store.set(self._failed[self.rank], "")
            if not self.is_alive():
                self.store.set(self._left[self.rank], "")
        except (DistError, RuntimeError):
            pass  # the rank that serves the store has already ended

    def outlast(self, seconds: float) -> None:
        """Return when all other ranks have left, or after `seconds`."""
        wait_until(lambda: self.store.check(self._left), seconds)

    def run(self) -> None:
        heard = [time.monotonic()] * self.size
        counts: list[bytes] = [b""] * self.size
        still = _StandsStill()
        try:
            while not self._over.wait(self.every):
                self.store.add(self._keys[self.rank], 1)
                now = time.monotonic()
                for number, count in enumerate(self.store.multi_get(self._keys)):
                    if count != counts[number]:
                        counts[number], heard[number] = count, now
                heard[self.rank] = now  # a rank that was itself suspended for long must not count as silent
                silent = [n for n in range(self.size) if now - heard[n] > self.seconds and not self._has_left(n)]
                if silent:
                    self._end(silent)
                stands = still.seconds() > LAST_WORDS
                if stands and not self._raises and any(self.is_lost(n) for n in range(self.size) if n != self.rank):
                    self._exit("")
        except (DistError, RuntimeError) as error:
            if not self._over.wait(LAST_WORDS):
                self._exit(f"rank {self.rank} lost the connection to the first machine ({_first_line(error)})")

    def is_lost(self, number: int) -> bool:
        """Whether a rank has failed, or its process was on this machine and ended without leaving."""
        if self.store.check([self._failed[number]]):
            return True
        if not self.store.check([self._here[number]]):
            return False  # it has not begun
        machine, _, process = self.store.get(self._here[number]).decode().rpartition(" ")
        return machine == _machine() and not _runs(int(process)) and not self._has_left(number)

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


class _StandsStill:
    """How long the main thread has been at one instruction: waiting for a device, it is inside a call of torch."""

    def __init__(self) -> None:
        self._place: tuple[int, int] | None = None
        self._since = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the main thread was first seen at its present instruction."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        place = (id(frame), frame.f_lasti) if frame else None
        if place != self._place:
            self._place, self._since = place, time.monotonic()
        return time.monotonic() - self._since


def _machine() -> str:
    """A name for this machine and for the container, if any, that counts process ids by itself."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _runs(process: int) -> bool:
    """Whether a process of this machine is alive; one that has ended and not been waited for is not."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


_pulse: Heartbeat | None = None


def start_pulse(store: Store, rank: int, size: int, seconds: float, *, raises: bool = True) -> None:
    """Watch the other ranks from now on, and be watched by them; called once a process. `raises`: see `Heartbeat`."""
    global _pulse
    _pulse = Heartbeat(store, rank, size, seconds, raises=raises)
    _pulse.start()


def stop_pulse(failed: bool = False) -> None:
    """Tell the other ranks that this one is about to end: on purpose, or because it has `failed`."""
    if _pulse is not None:
        _pulse.leave(failed)


def leave_last() -> None:
    """Where this rank serves the store, let the others end first: they may still ask it whether to go on."""
    if _pulse is not None and _serves(os.environ):
        _pulse.outlast(LAST_WORDS)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__

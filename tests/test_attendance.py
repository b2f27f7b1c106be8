"""Ranks that wait for each other at the start, and their heartbeats, over real stores. A rank is a thread, or a process
if it has to vanish.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import HashStore

from dtrain.errors import DtrainError, InputError
from dtrain.runtime import attendance
from dtrain.runtime.attendance import names, open_store, rendezvous
from dtrain.runtime.machines import Machines, parse_machines

# Three ranks, forked from one process so that all of them start at the same time. The last line prints the exit codes
# of the first two.
RANKS = """\
import os, sys, time
from dtrain.runtime.attendance import open_store, start_pulse, stop_pulse
port, *ends = sys.argv[1:]
ranks = []
for rank, end in enumerate(ends):
    ranks.append(os.fork())
    if not ranks[rank]:
        told = os.open(f"{rank}.err", os.O_WRONLY | os.O_CREAT)
        os.dup2(told, 1)  # a rank that is stopped must not hold the pipe
        os.dup2(told, 2)
        store = open_store("127.0.0.1", int(port), serve=False, seconds=30)
        start_pulse(store, rank, 3, float(os.environ["SILENCE"]))
        time.sleep(float(end))
        stop_pulse()
        os._exit(0)
print(*ranks, flush=True)
print(*[os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks[:2]], flush=True)
"""
SILENCE = 2.5  # seconds, more than a busy machine lets a process wait


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answer(port: int, index: int, count: int, seconds: float) -> list[str] | None:
    """None if all ranks arrived, else the reported problems."""
    store = open_store("127.0.0.1", port, serve=index == 0, seconds=seconds)
    try:
        rendezvous(store, "rank", index, count, seconds)
    except DtrainError as error:
        return error.problems
    finally:
        time.sleep(0.3)  # the server stays until the other ranks have sent their requests
    return None


def test_a_rendezvous_ends_when_all_are_here() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(answer, port, index, 3, 30.0) for index in range(3)]
        assert [one.result() for one in answers] == [None, None, None]


def test_a_rendezvous_names_who_is_missing_once() -> None:
    port = free_port()
    with ThreadPoolExecutor(2) as threads:
        begin = time.monotonic()
        answers = [threads.submit(answer, port, index, 5, 1.0) for index in (0, 3)]
        told = [one.result() for one in answers]
    assert told == [["ranks 1, 2, 4 of 5 did not arrive within 1 s"], []]
    assert time.monotonic() - begin < 10


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(DtrainError, match=r"the first machine \(127.0.0.1:\d+\) did not answer within 0.5 s"):
        open_store("127.0.0.1", free_port(), serve=False, seconds=0.5)


def test_long_lists_are_cut() -> None:
    assert names("rank", [3]) == "rank 3"
    assert names("rank", list(range(40))).endswith("14, 15, ...")


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "left"])
def test_a_silent_rank_ends_the_others_and_one_that_left_does_not(tmp_path: Path, frozen: bool) -> None:
    port = free_port()
    server = open_store("127.0.0.1", port, serve=True, seconds=30)
    ends = ["300", "300", "300"] if frozen else ["5", "5", "0.1"]
    words = [sys.executable, "-c", RANKS, str(port), *ends]
    environment = os.environ | {"SILENCE": str(SILENCE), "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    assert parent.stdout is not None
    ranks = [int(word) for word in parent.stdout.readline().split()]
    try:
        while any(server.add(f"dtrain/pulse/{rank}", 0) < 1 for rank in range(2 + frozen)):
            time.sleep(0.05)
        if frozen:
            os.kill(ranks[2], signal.SIGSTOP)
        codes = [int(word) for word in parent.communicate(timeout=300)[0].split()]
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
        parent.kill()
        parent.wait()
    told = [(tmp_path / f"{rank}.err").read_text() for rank in range(2)]
    if frozen:
        assert codes == [1, 1]
        assert f"rank 2 of 3 gave no sign of life for {SILENCE:g} s" in told[0]
        assert told[1] == ""
    else:
        assert codes == [0, 0], told
        assert told == ["", ""]


@pytest.mark.parametrize(
    ("happens", "raises", "busy", "ends"),
    [
        ("killed", False, False, True),
        ("failed", False, False, True),
        ("left", False, False, False),
        ("nothing", False, False, False),
        ("killed", True, False, False),  # gloo's collectives raise an error, which the main thread handles
        ("killed", False, True, False),  # the main thread is at work, as when ranks train students of their own
    ],
)
def test_a_lost_rank_ends_those_that_wait_for_a_device(
    monkeypatch: pytest.MonkeyPatch, happens: str, raises: bool, busy: bool, ends: bool
) -> None:
    """NCCL's collectives raise no error: the main thread waits in a call that never returns."""
    monkeypatch.setattr(attendance, "LAST_WORDS", 0.3)
    ended = threading.Event()
    monkeypatch.setattr(attendance.Heartbeat, "_exit", lambda self, line: (ended.set(), self._over.set()))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    store = HashStore()
    pulse = attendance.Heartbeat(store, 0, 2, 60, raises=raises)
    pulse.every = 0.02
    # A child that has ended without being waited for counts as gone, too.
    process = 1 if happens == "nothing" else gone.pid
    store.set("dtrain/process/1", f"{attendance._machine()} {process}")
    if happens in ("failed", "left"):
        store.set(f"dtrain/{happens}/1", "")
    time.sleep(0.2)
    pulse.start()
    deadline = time.monotonic() + (10 if ends else 0.8)
    while busy and time.monotonic() < deadline:
        for _ in range(3):  # the main thread computes, in many places of the code
            time.sleep(0.003)
            sum(range(1000))
            time.sleep(0.005)
        time.sleep(0.007)
    assert ended.wait(max(0.0, deadline - time.monotonic())) is ends
    pulse.leave()
    gone.wait()


def test_a_process_of_another_machine_is_not_looked_for() -> None:
    store = HashStore()
    pulse = attendance.Heartbeat(store, 0, 2, 60)
    store.set("dtrain/process/1", "elsewhere 999999")
    assert not pulse.is_lost(1)
    store.set("dtrain/failed/1", "")
    assert pulse.is_lost(1)


def test_machines_of_the_command_line() -> None:
    assert parse_machines(1, 0, None) == Machines()
    assert parse_machines(2, 1, "node-1:20480") == Machines(2, 1, "node-1", 20480)


@pytest.mark.parametrize(
    ("count", "rank", "rendezvous", "told"),
    [
        (0, 0, "n1:20000", "--machines: 0"),
        (2, 2, "n1:20000", "--machine-rank: 2 (allowed: 0 to 1"),
        (2, 0, None, "--rendezvous: is missing"),
        (2, 0, "n1", "--rendezvous: n1"),
        (2, 0, "n1:99999", "--rendezvous: n1:99999"),
    ],
)
def test_machines_that_cannot_be(count: int, rank: int, rendezvous: str | None, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_machines(count, rank, rendezvous)
    assert told in str(caught.value)

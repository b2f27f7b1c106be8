"""Requests to stop: what counts as one, what ends the process, and time limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dtrain.runtime import signals

LISTENER = """\
import sys, time
from dtrain.runtime import signals
signals.listen()
print("ready", flush=True)
for line in sys.stdin:
    print(*signals.received, flush=True)
"""


def test_one_request_may_arrive_twice_and_the_third_one_ends_the_process() -> None:
    """A request may arrive twice because a scheduler signals every process and the launcher passes its signal on."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline() == "ready\n"

    def heard() -> str:
        assert process.stdin and process.stdout
        process.stdin.write("?\n")
        return process.stdout.readline().strip()

    for _ in range(3):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
    assert heard() == "SIGUSR1"
    process.send_signal(signal.SIGTERM)
    assert heard() == "SIGUSR1 SIGTERM"
    time.sleep(signals.SAME_SECONDS + 0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM


def test_signals_that_were_blocked_by_the_launcher_are_kept() -> None:
    """A worker that is still starting receives them as soon as it has installed its handlers."""
    code = "import time; time.sleep(1)\n" + LISTENER.replace(
        "for line", "print(*signals.received, flush=True)\nfor line"
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "ready\nSIGTERM\n"


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signals.STOP_AT, "")  # so that it is restored afterwards
    for name in (signals.STOP_AT, signals.JOB_ENDS_AT):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("seconds", "job", "left"),
    [
        (None, None, None),
        (300.0, None, 300),
        (None, 3600, 3600 - 120),
        (None, 100, 90),  # for a short job, a tenth of its time is reserved
        (60.0, 3600, 60),
        (9999.0, 3600, 3600 - 120),
    ],
)
@pytest.mark.usefixtures("no_limit")
def test_the_earlier_limit_counts(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, job: int | None, left: float | None
) -> None:
    now = time.time()
    if job is not None:
        monkeypatch.setenv(signals.JOB_ENDS_AT, str(round(now) + job))
    signals.limit_time(seconds)
    assert not signals.time_is_up()
    if left is None:
        assert signals.STOP_AT not in os.environ
    else:
        assert float(os.environ[signals.STOP_AT]) - now == pytest.approx(left, abs=2)
        # Processes that are started later stop at the same moment.
        signals.limit_time(5.0)
        assert float(os.environ[signals.STOP_AT]) - now == pytest.approx(left, abs=2)


def test_time_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signals.STOP_AT, f"{time.time() - 1:.0f}")
    assert signals.time_is_up()

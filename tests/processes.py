"""Run commands in other processes: forked from a server that has imported everything (see `fork_server`), or started as
a user starts them, for tests of launching, of faults and of exit codes.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORT_SECONDS = 900  # on a machine with twenty other processes on two cores; on an idle one it takes ten


class Forked:
    """A forked command with those methods of `subprocess.Popen` that tests use; its input and output are files."""

    def __init__(self, words: list[str], cwd: Path | str | None, env: dict[str, str], stdin: str = "") -> None:
        assert words[0] == sys.executable
        self.args, self.returncode = words, None
        self._files = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(3)]  # noqa: SIM115
        self._files[0].write(stdin)
        self._files[0].seek(0)
        self._told, theirs = socket.socketpair()
        request = {"words": words[1:], "cwd": os.fspath(cwd or os.getcwd()), "env": env}
        body = json.dumps(request).encode()
        control = server()
        descriptors = [*(file.fileno() for file in self._files), theirs.fileno()]
        socket.send_fds(control, [len(body).to_bytes(4, "big")], descriptors)
        control.sendall(body)
        theirs.close()
        self._lines = self._told.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                return self.wait(0)
            except subprocess.TimeoutExpired:
                pass
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._told.settimeout(timeout or 1e-6)
            if timeout is None:
                self._told.settimeout(None)
            try:
                self._told.recv(1, socket.MSG_PEEK)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._told.settimeout(None)
            self.returncode = int(self._lines.readline())
            self._told.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the process; return the stdout and stderr of it and of its child processes."""
        self.wait(timeout)
        told = []
        for file in self._files[1:]:
            file.seek(0)
            told.append(file.read())
        return told[0], told[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def server() -> socket.socket:
    """Start the server of this process and return the socket to it."""
    ours, theirs = socket.socketpair()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu"),
        # Pyarrow's allocator, which would start a thread when it is imported.
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        # Counting GPUs must not initialise CUDA, which does not work after a fork.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
    words = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
    process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=environment, cwd=ROOT)
    theirs.close()
    atexit.register(_end, ours, process)
    ours.settimeout(IMPORT_SECONDS)
    assert ours.recv(1) == b"r", "the fork server did not start; its reason is above"
    ours.settimeout(None)
    return ours


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.wait()


# --- commands ------------------------------------------------------------------------------------


def python(*words: str | Path) -> list[str]:
    return [sys.executable, *map(str, words)]


def start(words: Sequence[str | Path], folder: Path | None = None, **environment: str) -> Forked:
    """Fork `python WORDS...` in `folder`."""
    return Forked(python(*words), folder, os.environ | environment)


def start_for_real(
    words: Sequence[str | Path], folder: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start any command in `folder` as a new program; `words` begin with its name."""
    pipe = subprocess.PIPE
    whole = [str(word) for word in words]
    return subprocess.Popen(whole, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=os.environ | environment)


def start_ranks(
    words: Sequence[str | Path], folder: Path | None = None, ranks: int = 2, **environment: str
) -> list[Forked]:
    """Fork ranks without a launcher, which would show only one exit code and pass signals on."""
    place = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in range(ranks):
        own = {name: str(value) for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
        started.append(start(words, folder, **environment, **own))
    return started


def ended(processes: Sequence[Forked | subprocess.Popen[str]], seconds: float = 200) -> tuple[list[int], str]:
    """Wait for the end of the processes and return their exit codes, and all that they wrote to stderr."""
    try:
        told = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "".join(told)  # type: ignore[misc]


def dtrain(
    *arguments: str | Path, code: int = 0, folder: Path | None = None, stdin: str = "", for_real: bool = False
) -> str:
    """Run `dtrain ARGUMENTS` and return its stdout and stderr; it must end with `code` and show no traceback."""
    words = ["-m", "dtrain", *arguments]
    if for_real:
        done = subprocess.run(python(*words), input=stdin, capture_output=True, text=True, timeout=600, cwd=folder)
        out, err, found = done.stdout, done.stderr, done.returncode
    else:
        process = Forked(python(*words), folder, dict(os.environ), stdin)
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
        found = process.returncode
    assert found == code, f"exit code {found}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out + err


_EACH = """
import json, os, sys, traceback
first, codes = json.load(sys.stdin)
exec(first)
ends = []
for number, code in enumerate(codes):
    child = os.fork()
    if child:
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    for target, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), target)
    end = 1
    try:
        exec(code, {"__name__": "__main__"})
        end = 0
    except SystemExit as asked:
        end = asked.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end)
print(json.dumps(ends))
"""


def run_each(
    codes: Sequence[str], first: str, folder: Path, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run each piece of code in a new process, as `python -c` does, one after another; `folder` holds their output.

    All are forked from one process that has run only `first`, the imports that they have in common.
    """
    words, own = python("-c", _EACH), os.environ | {"PYTHONPATH": str(ROOT)} | environment
    asked = json.dumps([first, list(codes)])
    done = subprocess.run(words, input=asked, capture_output=True, text=True, timeout=1800, cwd=folder, env=own)
    assert done.returncode == 0, done.stderr
    told = [
        [(folder / f"{n}.{name}").read_text(encoding="utf-8") for name in ("out", "err")] for n in range(len(codes))
    ]
    ends = json.loads(done.stdout.splitlines()[-1])
    return [subprocess.CompletedProcess(*one) for one in zip(codes, ends, *zip(*told, strict=True), strict=True)]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]

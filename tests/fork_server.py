"""Forks Python commands from a process that has imported what they need: `python -m tests.fork_server FD`.

Most of a short command's time goes into imports (torch, transformers, accelerate, deepspeed: four to six seconds of one
core). A command that is forked from this process does what `python -m MODULE ...` or `python SCRIPT ...` would do, in a
process of its own, with its own arguments, environment, working directory and files, but without the time for imports.

`accelerate launch` and `dtrain run` start further commands. In a forked process these are forked, too: accelerate's own
code prepares their environment, but `_fork_ranks` replaces torch's elastic agent, which would start them. Tests of the
agent itself (lost and hung ranks, several machines) start real processes.

Forked commands do not show imports that are missing or slow, hash seeds that differ between ranks, and the effect of
variables that a library reads when it is imported. `tests/processes.py` is the other end of the socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

# Modules that commands import late, or that the libraries import themselves.
LIBRARIES = (
    "accelerate.commands.launch",
    "datasets",
    "deepspeed",
    "evaluate",
    "jinja2",
    "matplotlib.pyplot",
    "psutil",
    "torch.distributed.elastic.multiprocessing.errors",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.utils.checkpoint",
    "torch.utils.tensorboard",
    "transformers",
)
TERM_SECONDS = 8  # for the other ranks after one has failed; torch's agent waits 30 s, in most cases in vain
PLAIN_POPEN = subprocess.Popen


def import_everything() -> None:
    """Import the package and its libraries, and run once the initialisation that every command would repeat.

    Raises:
        RuntimeError: if this started a thread: a fork copies the locks of a thread, but not the thread.
    """
    import dtrain

    for name in LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(dtrain.__path__, "dtrain."):
        # Left out: the code of an exported model runs elsewhere, and imports onnxruntime, which starts a thread.
        if not module.name.endswith((".__main__", ".exported")):
            importlib.import_module(module.name)
    save_time()
    tasks = Path("/proc/self/task")
    if threading.active_count() > 1 or tasks.is_dir() and len(list(tasks.iterdir())) > 1:
        raise RuntimeError("an import started a thread, so that no process can be forked any more")


def save_time() -> None:
    """Switch off what takes most of the time of a command on a few rows and what no test examines."""
    from dtrain.data import normalize
    from dtrain.engines import speed
    from dtrain.pretraining import words
    from dtrain.runtime.distributed import World

    # Models of these sizes gain nothing by a second thread, and have to wait for it if another process uses its core.
    World.threads = 1  # type: ignore[assignment]
    speed.matmul_rate = lambda device, precision: 1e11  # measured for 0.2 s by every rank
    words.own_words()
    normalize._invisible()


# --- the server ----------------------------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """Fork a command for every request until the other end closes, then kill what is left.

    A request is a JSON object with `words`, `cwd` and `env`, after its length in 4 bytes, and four file descriptors:
    the command's stdin, stdout and stderr, and a socket. On that the server writes a line with the process id, and
    another with the exit code (negative: the signal) once the process has ended.
    """
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent by a terminal: pytest handles it
    running: dict[int, int] = {}  # process id -> descriptor to tell of its end
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    os.write(control.fileno(), b"r")
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if woken in ready:
            woken.recv(4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    _tell(running.pop(pid), os.waitstatus_to_exitcode(status))
        if control in ready:
            request, descriptors = _receive(control)
            if request is None:
                break
            pid = os.fork()
            if pid == 0:
                _become(request, descriptors[:3])
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            running[pid] = descriptors[3]
            os.write(descriptors[3], f"{pid}\n".encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _tell(descriptor: int, code: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for the answer
        os.write(descriptor, f"{code}\n".encode())
    os.close(descriptor)


def _receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(control, 4, 4)
    if not head:
        return None, []
    body = control.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    return json.loads(body), descriptors


# --- a forked command ----------------------------------------------------------------------------


def _become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    signal.set_wakeup_fd(-1)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.closerange(3, 256)  # the server's descriptors; the imports have left none open
    os.chdir(request["cwd"])
    torch_run: Any = sys.modules["torch.distributed.run"]
    torch_run.run = _fork_ranks
    subprocess.Popen = _Popen  # type: ignore[misc]
    _run(request["words"], request["env"])


def _run(words: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Run in a process that was just forked: do what Python would do with `words`, and end the process."""
    code: Any = 1
    try:
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(environment)
        # Otherwise output that was written before a kill would be lost.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _fork(words: list[str], environment: Mapping[str, str], new_session: bool = False) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # The only other thread is the launcher's, which waits for an event.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        if new_session:
            os.setsid()
        _run(words, environment)
    return pid


class _Popen(PLAIN_POPEN):
    """`subprocess.Popen`, except that `python -m ...` without redirected files is forked."""

    def __init__(self, args: Any, *others: Any, **options: Any) -> None:
        if list(args)[:2] != [sys.executable, "-m"] or others or options.keys() - {"env", "start_new_session"}:
            super().__init__(args, *others, **options)
            return
        environment = options.get("env") or os.environ
        self.args, self.returncode, self._child_created = args, None, True
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock = threading.Lock()
        self.pid = _fork(list(args)[1:], dict(environment), options.get("start_new_session", False))


def _fork_ranks(launched: Namespace) -> None:
    """Do what `torch.distributed.run.run` does on one machine, without its agent: start the ranks and wait for all of
    them.
    """
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    size, port = int(launched.nproc_per_node), int(launched.master_port)
    place = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place["TORCHELASTIC_USE_AGENT_STORE"] = True  # otherwise the store would end with rank 0
    words = ["-m", launched.training_script] if launched.module else [launched.training_script]
    words += launched.training_script_args
    ranks = {}
    for rank in range(size):
        own = {name: str(value) for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
        ranks[_fork(words, {**os.environ, **own})] = rank
    # Starts threads, so it comes after the forks.
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    failures: dict[int, ProcessFailure] = {}
    kill_at = float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            if time.monotonic() > kill_at:
                _signal(ranks, signal.SIGKILL)
            time.sleep(0.02)
            continue
        code = os.waitstatus_to_exitcode(status)
        rank = ranks.pop(pid)
        if code:
            failures[rank] = ProcessFailure(rank, pid, code, "")
            if len(failures) == 1:
                _signal(ranks, signal.SIGTERM)
                kill_at = time.monotonic() + TERM_SECONDS
    del store  # and its threads, before another launch forks
    if failures:
        raise ChildFailedError("forked", failures)


def _signal(ranks: dict[int, int], number: int) -> None:
    for pid in ranks:
        os.kill(pid, number)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    import_everything()
    gc.collect()
    gc.freeze()  # otherwise a garbage collection in a child would copy every page
    serve(control)


if __name__ == "__main__":
    main()

"""The processes (ranks) of a launch: which one this is, sums and flags over all of them, long waits, and leaving.

It works the same for one process and many, on GPUs (NCCL, or gloo where a recipe asks for it) and CPUs (gloo).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs

from dtrain.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, DtrainError, InputError, reason_of
from dtrain.log import is_main_process
from dtrain.runtime.allocator import keep_freed_memory
from dtrain.runtime.attendance import (
    heard_within,
    leave_last,
    rank_store,
    rendezvous,
    start_pulse,
    stop_pulse,
    wait_until,
)
from dtrain.runtime.machines import usable_cores
from dtrain.runtime.sharding import Sharding, read_sharding, take_variables
from dtrain.runtime.world_check import check_devices, check_world, parent_command

if TYPE_CHECKING:
    from dtrain.runtime.stop import StopRequest

T = TypeVar("T")


class World:
    """The processes of this launch. Built once a process, by `connect`.

    Attributes:
        rank, size: this process's number among all, and how many there are.
        local_rank, local_size: the same on this machine.
        device: where this rank computes.
        stop: tells whether to stop; set by the code that runs stages.
    """

    def __init__(self, accelerator: Accelerator, variables: Mapping[str, str] | None = None) -> None:
        """`variables`: what the launch said about sharding, from `take_variables`."""
        self.accelerator = accelerator
        self._variables = dict(variables or {})
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        self.local_rank: int = accelerator.local_process_index
        self.device: torch.device = accelerator.device
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.stop: StopRequest | None = None
        self._waits = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @cached_property
    def sharding(self) -> Sharding:
        """How the launch wants models to be spread that all ranks train together.

        Raises:
            InputError: it asks for something that dtrain does not support.
        """
        return read_sharding(self._variables)

    @property
    def threads(self) -> int:
        """How many threads this rank may compute with: its share of the machine's CPU cores."""
        return max(1, usable_cores() // self.local_size)

    # --- agreeing ------------------------------------------------------------------------------

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank; `tensor` is changed in place (a collective).

        A tensor on the CPU is reduced by gloo, also beside NCCL: that waits for no device.
        """
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank (a collective)."""
        return bool(self.sum(torch.tensor([int(flag)]))[0] > 0)

    def begin_any(self, flag: bool) -> Callable[[], bool]:
        """`any` without waiting (a collective): returns a function that waits for the answer.

        The flags are on the CPU: waiting for the answer waits for no device, and where a rank is gone it raises, which
        NCCL does not.
        """
        if self.size == 1:
            return lambda: flag
        flags = torch.tensor([int(flag)])
        work = dist.all_reduce(flags, async_op=True)
        assert work is not None

        def answer() -> bool:
            work.wait()
            return bool(flags[0] > 0)

        return answer

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank (a collective); for small control data.

        torch pickles the values. What is unpickled comes from the ranks of this launch, never from a file.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, work: Callable[[], T]) -> list[T]:
        """Every rank's result of `work`, in rank order, on every rank (a collective); for small results.

        Where `work` fails on some ranks, all ranks learn of it here: no rank waits for one that has failed.

        Raises:
            Exception: what `work` raised on this rank.
            DtrainError: `work` failed on other ranks only. A DtrainError is the same as on the first of these. Of any other
                error, rank 0 tells the user where it failed itself, and this has no message; else it gives the reason.
        """
        own: Exception | None = None
        told: tuple[T | None, DtrainError | None] = (None, None)
        try:
            told = (work(), None)
        except Exception as error:
            reason = [f"rank {self.rank}: {reason_of(error)}"] if self.rank else []
            own, told = error, (None, error if isinstance(error, DtrainError) else DtrainError(reason))
        everywhere = self.gather_objects(told)
        if own is not None:
            raise own
        for _, problem in everywhere:
            if problem is not None:
                raise problem
        return [result for result, _ in everywhere]  # type: ignore[misc]  # None only where there is a problem

    def asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop. Not a collective: ranks may learn of it at different times."""
        return self.stop is not None and self.stop.anywhere()

    # --- the shared counter and long waits --------------------------------------------------------

    def store(self) -> dist.Store | None:
        """The launch's key-value store, None for one process. It is used without collectives, so without their timeout."""
        return dist.distributed_c10d._get_default_store() if self.size > 1 else None

    def counter(self, name: str) -> Callable[[], int]:
        """A function that gives 0, 1, 2, ..., each number to one rank only. `name` must be new every time."""
        store = self.store()
        if store is None:
            numbers = iter(range(sys.maxsize))
            return lambda: next(numbers)
        return lambda: store.add(f"dtrain/counter/{name}", 1) - 1

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 while the others wait, however long it takes; every rank gets its result.

        The result must survive a round trip through JSON. An error on rank 0 is raised on every rank, elsewhere without
        a message: rank 0 tells the user.
        """
        self._waits += 1
        key = f"dtrain/main-first/{self._waits}"
        store = self.store()
        if store is None:
            return work()
        if self.is_main:
            try:
                result = work()
            except DtrainError as error:
                store.set(key, json.dumps({"code": error.exit_code}))
                raise
            except BaseException:
                store.set(key, json.dumps({"code": EXIT_FAILED}))
                raise
            store.set(key, json.dumps({"code": EXIT_DONE, "result": result}))
            return result
        wait_until(lambda: store.check([key]))
        answer = json.loads(store.get(key))
        if answer["code"] != EXIT_DONE:
            followed = DtrainError([])
            followed.exit_code = answer["code"]
            raise followed
        return answer["result"]

    def wait_for_all(self, name: str, seconds: float = math.inf) -> bool:
        """A barrier for ranks whose work takes very different times; returns whether all came within `seconds`."""
        store = self.store()
        if store is None:
            return True
        self._waits += 1
        key = f"dtrain/wait/{self._waits}/{name}"
        store.add(key, 1)
        all_came = wait_until(lambda: store.add(key, 0) >= self.size, seconds)
        if not all_came:
            store.add(key, -1)  # those that come later must not find all ranks here
        return all_came


def backend_of(asked: str, gpus: bool) -> str:
    """'nccl' or 'gloo' for `launch.backend`, where there are GPUs or none.

    Raises:
        InputError: NCCL without GPUs.
    """
    if asked == "nccl" and not gpus:
        if not is_main_process():
            time.sleep(5)  # the main rank has the message; when it leaves, the launcher ends this one
            raise InputError([])
        raise InputError("launch.backend: nccl needs GPUs (found none; allowed here: gloo, auto)")
    if asked == "auto":
        return "nccl" if gpus else "gloo"
    return asked


def connect(precision: str = "no", timeout: float = 600, backend: str = "auto") -> World:
    """Join the launch that this process belongs to; without a launcher the process is a world of one rank.

    Args:
        precision: the launch's mixed precision, as Accelerate names it: 'no', 'bf16' or 'fp16'.
        timeout: seconds in which all ranks must arrive, a collective must end, and a rank must give a sign of life.
        backend: what ranks talk through: 'nccl', 'gloo', or 'auto' for NCCL on GPUs and gloo on CPUs.

    Raises:
        InputError: another number of processes connected than was asked for, a machine has more of them than GPUs, or
            NCCL was asked for without GPUs.
        DtrainError: naming ranks that did not arrive.
    """
    cpu = not torch.cuda.is_available()
    backend = backend_of(backend, not cpu)
    if cpu:
        keep_freed_memory()
        # transformers imports DeepSpeed when it saves, which otherwise warns that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Over gloo several ranks may share a GPU.
    check_devices(os.environ, torch.cuda.device_count() if backend == "nccl" else 0)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    variables = take_variables(os.environ)
    if asked > 1:
        store = rank_store(os.environ, timeout)
        rendezvous(store, "rank", int(os.environ["RANK"]), asked, timeout)
    # Beside NCCL, tensors on the CPU (flags, counts, objects) go by gloo, which waits for no device.
    talk = "cuda:nccl,cpu:gloo" if backend == "nccl" else backend
    handlers = [InitProcessGroupKwargs(backend=talk, timeout=timedelta(seconds=heard_within(timeout)))]
    # Without cpu=True Accelerate does not connect CPU ranks, and each would be rank 0 of 1.
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers if asked > 1 else None)
    world = World(accelerator, variables)
    check_world(world.size, os.environ, sys.argv[1:], parent_command())
    if world.size > 1:
        if not dist.is_initialized():
            raise DtrainError(f"{world.size} processes were started, but they are not connected")
        start_pulse(store, world.rank, world.size, timeout, raises=backend == "gloo")
    torch.set_num_threads(world.threads)
    # By default torch rounds the inputs of convolutions and LSTMs to 10 bits (TF32), but not those of matrix products.
    torch.backends.cudnn.allow_tf32 = False
    return world


def leave(code: int) -> None:
    """End this process with `code`, without the interpreter's own shutdown.

    With gloo that shutdown aborts about one time in eight ("terminate called without an active exception"). A rank that
    fails under NCCL does not end the process group first: that waits for the kernels it has queued, which wait for the
    other ranks, while these wait for it until `launch.timeout` is over. Without it the launcher ends the others at once.
    """
    failed = code not in (EXIT_DONE, EXIT_STOPPED)
    stop_pulse(failed)
    connected = dist.is_available() and dist.is_initialized()
    if connected and not (failed and "nccl" in dist.get_backend()):
        dist.destroy_process_group()
    leave_last()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def leave_together(world: World) -> Iterator[None]:
    """A region in which a problem that every rank meets is told by one rank; the others raise it without a message."""
    try:
        yield
    except DtrainError as error:
        store = world.store()
        if store is not None and error.problems:
            # Rank 0, which serves the store, may have left already: a message twice is better than none.
            with suppress(dist.DistError):
                if store.add("dtrain/problem/" + "|".join(error.problems), 1) > 1:
                    error.problems = []
        raise

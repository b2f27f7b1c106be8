"""The world of ranks: who am I, agreeing on things, waiting, and leaving.

Works the same for one process and many, on GPUs (NCCL) and CPUs (gloo). Everything else in the package asks
this module and never torch.distributed.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs

from dtrain.allocator import keep_freed_memory
from dtrain.attendance import heard_within, leave_last, rank_store, roll_call, start_pulse, stop_pulse
from dtrain.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, DtrainError
from dtrain.machines import usable_cores
from dtrain.sharding import Sharding, read_sharding, take_variables
from dtrain.world_check import check_world, parent_command

if TYPE_CHECKING:
    from dtrain.training.stop import StopRequest

T = TypeVar("T")
POLL_SECONDS = 0.1


class World:
    """The processes of this launch. Built once a process, by `connect`."""

    def __init__(self, accelerator: Accelerator, variables: Mapping[str, str] | None = None) -> None:
        """`variables`: what the launch said of sharding, as `take_variables` gave it."""
        self.accelerator = accelerator
        self._variables = dict(variables or {})
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        self.local_rank: int = accelerator.local_process_index
        self.device: torch.device = accelerator.device
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.stop: StopRequest | None = None  # set by who runs stages
        self._waits = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @cached_property
    def sharding(self) -> Sharding:
        """How the launch asks for models that all ranks train together.

        Raises:
            InputError: where it asks for what dtrain does not do.
        """
        return read_sharding(self._variables)

    @property
    def threads(self) -> int:
        """CPU cores for this rank alone."""
        return max(1, usable_cores() // self.local_size)

    # --- agreeing ------------------------------------------------------------------------------

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks (every rank gets it); the tensor itself on one rank."""
        if self.size == 1:
            return tensor
        moved = tensor.to(self.device)
        dist.all_reduce(moved)
        return moved.to(tensor.device)

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor([int(flag)]))[0] > 0)

    def begin_any(self, flag: bool) -> Callable[[], bool]:
        """Begin `any`, and go on meanwhile (a collective); the function that is returned waits for the answer.

        On a GPU the flags have a stream of their own: who asks for the answer does not wait for the work queued since.
        """
        if self.size == 1:
            return lambda: flag
        with self._aside():
            flags = torch.tensor([int(flag)], device=self.device)
            work = dist.all_reduce(flags, async_op=True)
        assert work is not None

        def answer() -> bool:
            with self._aside():
                work.wait()
                return bool(flags[0] > 0)

        return answer

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def _aside(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self.device.type == "cuda" else nullcontext()

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. For small control data of our own.

        torch pickles it: what is unpickled comes from this launch's own ranks, never from a file or from elsewhere.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop; no collective, so ranks may learn of it at different times."""
        return self.stop is not None and self.stop.anywhere()

    # --- the shared counter and long waits --------------------------------------------------------

    def store(self) -> dist.Store | None:
        """The process group's key-value store: reachable without a collective, so without its time-out."""
        return dist.distributed_c10d._get_default_store() if self.size > 1 else None

    def counter(self, name: str) -> Callable[[], int]:
        """A function giving 0, 1, 2, ... over all ranks, each number once. `name` must be new every time."""
        store = self.store()
        if store is None:
            numbers = iter(range(sys.maxsize))
            return lambda: next(numbers)
        return lambda: store.add(f"dtrain/counter/{name}", 1) - 1

    def main_first(self, work: Callable[[], T]) -> T:
        """Run `work` on the main rank while the others wait, however long it takes; every rank gets its result.

        The result must survive JSON. An error on the main rank is raised on every rank, so that all leave together.
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
        while not store.check([key]):
            time.sleep(POLL_SECONDS)
        answer = json.loads(store.get(key))
        if answer["code"] != EXIT_DONE:
            followed = DtrainError([])  # the main rank tells the user
            followed.exit_code = answer["code"]
            raise followed
        return answer["result"]

    def wait_for_all(self, name: str, seconds: float = math.inf) -> bool:
        """A barrier for after work of very different length on each rank; whether all have come within `seconds`."""
        store = self.store()
        if store is None:
            return True
        give_up = time.monotonic() + seconds
        self._waits += 1
        key = f"dtrain/wait/{self._waits}/{name}"
        store.add(key, 1)
        while store.add(key, 0) < self.size:
            if time.monotonic() > give_up:
                store.add(key, -1)  # who comes later is not to find all here
                return False
            time.sleep(POLL_SECONDS)
        return True


def connect(precision: str = "no", timeout: float = 600) -> World:
    """Join the launch this process belongs to (one process when there was no launcher).

    Args:
        timeout: seconds for all ranks to arrive, for a collective to end, and without a sign of life of a rank.

    Raises:
        InputError: where the formed world is not the one that was asked for.
        DtrainError: naming ranks that did not arrive.
    """
    cpu = not torch.cuda.is_available()
    if cpu:
        keep_freed_memory()
        # transformers imports DeepSpeed when it saves, which else warns that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    variables = take_variables(os.environ)
    if asked > 1:
        store = rank_store(os.environ, timeout)
        roll_call(store, "rank", int(os.environ["RANK"]), asked, timeout)
    handlers = [
        InitProcessGroupKwargs(backend="gloo" if cpu else "nccl", timeout=timedelta(seconds=heard_within(timeout)))
    ]
    # Without cpu=True Accelerate leaves CPU ranks unconnected, each believing to be alone.
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=handlers if asked > 1 else None)
    world = World(accelerator, variables)
    check_world(world.size, os.environ, sys.argv[1:], parent_command())
    if world.size > 1:
        if not dist.is_initialized():
            raise DtrainError(f"{world.size} processes were started, but they are not connected")
        start_pulse(store, world.rank, world.size, timeout)
    torch.set_num_threads(world.threads)
    # By default torch rounds what convolutions and LSTMs take in to 10 bits (TF32), and what products take in not.
    torch.backends.cudnn.allow_tf32 = False
    return world


def leave(code: int) -> None:
    """End this process with `code`, without the interpreter's own shutdown.

    With gloo that shutdown aborts about one time in eight ("terminate called without an active exception"). A rank that
    fails under NCCL does not end the process group first: that waits for the kernels it has queued, which wait for the
    other ranks, while these wait for it until `launch.timeout` is over. Without it the launcher ends the others at once.
    """
    stop_pulse()
    connected = dist.is_available() and dist.is_initialized()
    if connected and (code in (EXIT_DONE, EXIT_STOPPED) or dist.get_backend() != "nccl"):
        dist.destroy_process_group()
    leave_last()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def leave_together(world: World) -> Iterator[None]:
    """Let a problem that every rank meets be told once, and let the launcher end ranks that wait for a lost one."""
    try:
        yield
    except DtrainError as error:
        store = world.store()
        if store is not None and error.problems:
            # Rank 0, where the store is, may have left already: better told twice than not at all.
            with suppress(dist.DistError):
                if store.add("dtrain/problem/" + "|".join(error.problems), 1) > 1:
                    error.problems = []
        raise

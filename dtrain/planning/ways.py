"""Formulas for the memory and the communication of a step, by the way in which a model is spread over ranks.

N is the number of ranks. A number in float32 takes 4 bytes. See Rajbhandari et al. 2020 (ZeRO, 1910.02054, figure 1 and
section 7) for what each stage keeps and sends.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.planning.trial import Activations, Shape

GIB = 2**30
WAYS = ("ddp", "fsdp2", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
# In the order in which they are tried: by the bytes that they send in float32 (see `sent`), torch's ways before DeepSpeed's
# where they send the same, and last the ways that wait for the host's memory. In 16 bits the order is the same, although
# DeepSpeed's ways then send half as much: ZeRO-2 less than DDP in a step of one or two passes, ZeRO-3 of one less than FSDP2.
PREFERRED = ("ddp", "zero2", "fsdp2", "zero3", "zero2_offload", "zero3_offload")
MOMENTS = {"adamw": 2, "lamb": 2, "sgd": 1}
BUCKETS = 2 * 50_000_000  # numbers in DeepSpeed's two buckets of `reduce_bucket_size`, see ds_configs/
KEPT_BACK = 1.5 * GIB  # bytes for CUDA itself, NCCL's buffers, workspaces of cuBLAS and cuDNN
USABLE = 0.95  # share of the rest that can be used: the allocator leaves gaps


@dataclass(frozen=True)
class Memory:
    """Bytes that one GPU holds in a step."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    evaluation: float  # whole weights, gathered for an evaluation; gradients and activations are not there then

    @property
    def held(self) -> float:
        """Bytes that do not depend on the micro-batch."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def peak(self) -> float:
        """The most bytes at any moment, of training or of an evaluation."""
        scoring = self.weights + self.optimizer + self.evaluation if self.evaluation else 0.0
        return max(self.held + self.activations, scoring)


def room(memory: float) -> float:
    """Bytes that training may use of a GPU with `memory` bytes."""
    return (memory - KEPT_BACK) * USABLE


def memory(
    way: str, shape: Shape, activations: float, *, ranks: int, optimizer: str, precision: str, passes: int = 1
) -> Memory:
    """What one GPU holds; `activations` are the bytes of one of the `passes` backward passes of a step."""
    whole = shape.parameters
    state = 4.0 * MOMENTS[optimizer]
    directions = 4.0 if optimizer == "lamb" else 0.0  # LAMB computes all of a rank's directions before it scales them
    if ranks == 1:
        way = "ddp"
    if way == "ddp":
        # Gradients lie in DDP's buckets; those of passes before the last one, which sends them, lie beside the buckets.
        buckets = 4.0 * whole if ranks > 1 and passes > 1 else 0.0
        return Memory(4.0 * whole, 4.0 * whole, state * whole, buckets + directions * whole, activations, 0.0)
    share = whole / ranks
    if way == "fsdp2":
        # Two layers are gathered at a time, one of them ahead of its use; the rest of the model is gathered from its
        # first use to its last. The gradient of a layer is whole until it is scattered.
        rest = max(whole - shape.block * shape.layers, 0)
        gathered = 4.0 * (3 * shape.block + 2 * rest)
        gradients = 4.0 * (share + (whole if passes > 1 else 0.0))  # whole until the last pass scatters them
        return Memory(4 * share, gradients, state * share, gathered + directions * share, activations, 4.0 * whole)
    stage, half = int(way[4]), precision != "fp32"
    size = 2.0 if half else 4.0
    offload = way.endswith("_offload")
    master = 4.0 if half else (4.0 if stage < 3 else 0.0)  # DeepSpeed updates a float32 copy
    weights = size * (share if stage == 3 else whole)
    gradients = size * (whole if stage == 1 else share)
    optimizer_bytes = 0.0 if offload else (state + master) * share
    if offload and stage >= 2:
        gradients = 0.0 if stage == 2 else size * share
    buffers = size * BUCKETS + (0.0 if offload else directions * share)
    if stage == 3:
        buffers += size * (2 * shape.block + shape.largest)
    evaluation = 4.0 * whole if stage == 3 or half else 0.0
    return Memory(weights, gradients, optimizer_bytes, buffers, activations, evaluation)


def sent(way: str, shape: Shape, *, ranks: int, optimizer: str, precision: str, passes: int) -> float:
    """Bytes that one rank sends in a step of `passes` backward passes, by ring algorithms.

    In an all-reduce of n bytes it sends 2 (N-1)/N n bytes; in an all-gather or a reduce-scatter half of that.
    """
    if ranks == 1:
        return 0.0
    part = (ranks - 1) / ranks * shape.parameters
    size = 2.0 if precision != "fp32" else 4.0
    stage = int(way[4]) if way.startswith("zero") else 0
    if way == "ddp":
        found = 2 * 4.0 * part
    elif way == "fsdp2":  # weights before each forward and each backward pass; gradients once
        found = 4.0 * part * (2 * passes + 1)
    elif stage == 1:  # gradients once, then the new weights
        found = size * part * 2
    elif stage == 2:
        found = size * part * (passes + 1)
    else:
        found = size * part * 3 * passes
    return found + (16.0 * shape.tensors * 2 if optimizer == "lamb" else 0.0)  # two float64 sums a tensor


def most_rows(way: str, shape: Shape, each: Activations, free: float, **how: object) -> int:
    """Rows of the largest micro-batch that fits into `free` bytes; 0 where none does."""
    empty = memory(way, shape, 0.0, **how)  # type: ignore[arg-type]
    if empty.peak > free:
        return 0
    return each.most_rows(free - empty.held)

"""The only module that uses DeepSpeed's internals: where parameters lie, the loss scaler, the start of an engine.

None of the attributes read here is documented API. They were checked against the versions in `CHECKED`; of any version,
the layout that is read is compared with the values of the weights on every rank, and what cannot be read is an error.

Stages 1 and 2 (and BF16_Optimizer) concatenate a group's parameters into one buffer and cut it into equal partitions,
through the middle of tensors. Stage 3 cuts every parameter into ceil(numel / world) slices, the last one padded with
whatever was in memory, and concatenates slices by sub-group. The optimizer is handed this rank's partition as one flat
float32 tensor.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dtrain.engines.lamb import Lamb
from dtrain.engines.shard_layout import Layout, Part, ShardingError

CHECKED = ("0.19.8",)
UNREADABLE = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)

# DeepSpeed's calls by the names that torch had before 2.13.
warnings.filterwarnings("ignore", "`torch.distributed.(reduce_scatter|all_gather)", FutureWarning)


@dataclass
class Buffer:
    """One flat float32 partition that DeepSpeed steps: `params[i]` has its part `parts[i]` of it on this rank.

    That part is elements `offsets[i]`, ... of the whole parameter; `values[i]` are the model's own of them.
    """

    flat: Tensor
    params: list[Tensor]
    parts: list[Part]
    offsets: list[int]
    values: list[Tensor]
    group: dist.ProcessGroup

    def part(self, index: int, flat: Tensor) -> Tensor:
        """This rank's part of parameter `index` in `flat`, which is the buffer or laid out like it."""
        part = self.parts[index]
        return flat.detach()[part.start : part.start + part.length]

    def assemble(self, index: int, flat: Tensor, device: torch.device) -> Tensor:
        """The whole of parameter `index`, or of something laid out like it, from every rank's part (a collective)."""
        part, offset = self.parts[index], self.offsets[index]
        full = torch.zeros(part.shape.numel(), dtype=flat.dtype, device=device)
        full[offset : offset + part.length] = self.part(index, flat)
        dist.all_reduce(full, group=self.group)
        return full.view(part.shape)

    def cut(self, index: int, full: Tensor, flat: Tensor) -> None:
        """Copy this rank's part of the whole parameter `full` to its place in `flat`."""
        part, offset = self.parts[index], self.offsets[index]
        self.part(index, flat)[:] = full.reshape(-1)[offset : offset + part.length].to(flat)


# --- an engine ---------------------------------------------------------------------------------------


def start_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], device: str) -> Any:
    """A `DeepSpeedEngine`; at stage 3 the parameters are moved to the device one by one, so the model may be larger."""
    if device == "cpu":
        # Its all-reduce for inference, which nothing here calls, is compiled for 30 s at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    if config["zero_optimization"]["stage"] == 3:
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if config["fp16"]["enabled"]:
        # The loop ends a run of overflows itself, and says so in the same words for every engine.
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    return engine


def gathered(tensor: Tensor, *, write: bool = False) -> AbstractContextManager[Any]:
    """A region in which `tensor` is whole on every rank (a collective); with `write`, rank 0's changes to it are kept.

    Stage 3 cuts up parameters that are not trained, too; others are whole as they are.
    """
    if not is_cut(tensor):
        return contextlib.nullcontext()
    gather: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        [tensor], modifier_rank=0 if write else None
    )
    return gather


def is_cut(tensor: Tensor) -> bool:
    """Whether stage 3 has sharded `tensor`, so that this rank holds a slice of it."""
    return hasattr(tensor, "ds_id")


def loss_scale(engine: Any) -> float:
    return float(engine.optimizer.loss_scale)


def scaler_state(engine: Any) -> dict[str, float]:
    """The loss scale of an fp16 engine, how many steps have gone well since it last changed, and at which overflow it
    shrinks (1: at the next); empty where the config fixes the scale.
    """
    scaler = engine.optimizer.loss_scaler
    if not scaler.dynamic:
        return {}
    good_steps = scaler.cur_iter - scaler.last_overflow_iter - 1
    return {
        "scale": float(scaler.cur_scale),
        "good_steps": float(good_steps),
        "hysteresis": float(scaler.cur_hysteresis),
    }


def load_scaler_state(engine: Any, state: dict[str, float]) -> None:
    """Continue from what `scaler_state` gave."""
    scaler = engine.optimizer.loss_scaler
    if scaler.dynamic:
        scaler.cur_scale = state["scale"]
        scaler.last_overflow_iter = scaler.cur_iter - 1 - int(state["good_steps"])
        scaler.cur_hysteresis = int(state.get("hysteresis", scaler.cur_hysteresis))  # other engines have none


# --- where parameters lie ----------------------------------------------------------------------------


def attach_zero(optimizer: Lamb, engine: Any) -> None:
    """Tell `optimizer` which parameters lie where in the buffers that `engine` steps it with.

    Call it on every rank after `deepspeed.initialize` or `accelerator.prepare`, before the first step. It
    stays right when a checkpoint is loaded into the same engine. An engine that steps the parameters
    themselves (stage 0 in float32) needs nothing, and nothing is done.

    Args:
        optimizer: the LAMB that the engine was built with.
        engine: a `DeepSpeedEngine` of ZeRO stage 0, 1, 2 or 3, in float32, float16 or bfloat16, with or
            without CPU offload (`zero_force_ds_cpu_optimizer: false`).

    Raises:
        ShardingError: the engine steps another optimizer, splits tensors in ways that LAMB cannot follow,
            or has a layout that cannot be read, with DeepSpeed's version.
    """
    zero = engine.optimizer
    if zero is optimizer:
        return
    _refuse_unsupported(optimizer, engine, zero)
    device = torch.device(engine.device)
    for buffer in read_buffers(engine):
        optimizer.attach_layout(buffer.flat, Layout(tuple(buffer.parts), (buffer.group,), device))


def read_buffers(engine: Any) -> list[Buffer]:
    """Where the parameters lie in what a built `DeepSpeedEngine` of stage 1, 2 or 3 steps; every rank calls it.

    Raises:
        ShardingError: a layout that cannot be read, with DeepSpeed's version.
    """
    zero, device = engine.optimizer, torch.device(engine.device)
    try:
        buffers = list(_read(zero))
    except UNREADABLE as error:
        raise _unreadable(zero, f"{type(error).__name__}: {error}") from error
    for index, buffer in enumerate(buffers):
        _verify(zero, index, buffer, device)
    return buffers


def _refuse_unsupported(optimizer: Lamb, engine: Any, zero: Any) -> None:
    stepped = getattr(zero, "optimizer", None)
    if stepped is not optimizer:
        raise ShardingError(
            f"DeepSpeed steps a {type(stepped).__name__}, not the LAMB given: with CPU offload Accelerate "
            "replaces the optimizer unless the DeepSpeed config says "
            '"zero_force_ds_cpu_optimizer": false'
        )
    if getattr(zero, "zenflow", False):
        raise ShardingError('LAMB does not run under ZenFlow: remove "zenflow" from the DeepSpeed config')
    if getattr(zero, "swap_optimizer", False) or getattr(zero, "params_in_nvme_and_cpu", False):
        raise ShardingError(
            'LAMB does not run with NVMe offload: set "device" to "cpu" or "none" in the DeepSpeed config\'s '
            '"offload_optimizer" and "offload_param"'
        )
    mpu = getattr(engine, "mpu", None)
    for name in ("get_tensor_model_parallel_world_size", "get_model_parallel_world_size"):
        if mpu is not None and hasattr(mpu, name) and getattr(mpu, name)() > 1:
            raise ShardingError(
                "LAMB was given tensor-parallel slices under ZeRO, whose whole norms it cannot take: set "
                '"autotp_size" to 1, or use FSDP2 with DTensor parameters'
            )


def _read(zero: Any) -> Iterator[Buffer]:
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return _stage3(zero)
    groups = zero.real_dp_process_group
    if hasattr(zero, "single_partition_of_fp32_groups"):
        return _stage12(zero.single_partition_of_fp32_groups, zero.bit16_groups_flat, zero.bit16_groups, groups)
    # BF16_Optimizer, which stage 1 in bfloat16 with float32 accumulation gets
    return _stage12(zero.fp32_groups_flat_partition, zero.bf16_groups_flat, zero.bf16_groups, groups)


def _stage12(
    partitions: list[Tensor],
    model_buffers: list[Tensor],
    model_groups: list[list[Tensor]],
    process_groups: list[dist.ProcessGroup],
) -> Iterator[Buffer]:
    """A parameter's place is where its storage lies in the group's buffer.

    DeepSpeed's own `_hp_mapping` says so too, but wrongly under round_robin_gradients (0.19.8).
    """
    for flat, buffer, params, group in zip(partitions, model_buffers, model_groups, process_groups, strict=True):
        if flat.numel() * dist.get_world_size(group) != buffer.numel():
            raise ValueError(f"a partition of {flat.numel()} elements of a buffer of {buffer.numel()}")
        first = dist.get_rank(group) * flat.numel()
        parts, offsets, values = [], [], []
        for p in params:
            offset, rest = divmod(p.data_ptr() - buffer.data_ptr(), p.element_size())
            if rest or not 0 <= offset <= buffer.numel() - p.numel():
                raise ValueError("a parameter lies outside of its group's buffer")
            start = min(max(offset, first), first + flat.numel())
            length = max(min(offset + p.numel(), first + flat.numel()) - start, 0)
            parts.append(Part(p.shape, start - first, length))
            offsets.append(start - offset)
            values.append(p.detach().reshape(-1)[start - offset :][:length] if length else p.new_empty(0))
        yield Buffer(flat, params, parts, offsets, values, group)


def _stage3(zero: Any) -> Iterator[Buffer]:
    for index, (flat, params, group) in enumerate(
        zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, zero.sub_group_process_groups, strict=True)
    ):
        parts, offsets, values = [], [], []
        for p in params:
            sub_group, start, slice_numel = zero.grad_position[zero.get_param_id(p)]
            if sub_group != index:
                raise ValueError(f"grad_position puts a parameter of sub-group {index} into {sub_group}")
            # What is left of the parameter for this rank; the rest of its slice is padding.
            length = min(max(p.ds_numel - dist.get_rank(group) * slice_numel, 0), slice_numel)
            parts.append(Part(torch.Size(p.ds_shape), start, length))
            offsets.append(min(dist.get_rank(group) * slice_numel, p.ds_numel))
            values.append(p.ds_tensor.detach().reshape(-1)[:length])
        yield Buffer(flat, params, parts, offsets, values, group)


def _verify(zero: Any, index: int, buffer: Buffer, device: torch.device) -> None:
    """All ranks together: every element is in one part, and every part holds its parameter's values."""
    wrong = 0
    for part, value in zip(buffer.parts, buffer.values, strict=True):
        held = buffer.flat.detach()[part.start : part.start + part.length]
        wrong += not torch.equal(held.to(value.device, value.dtype), value)
    counts = torch.tensor([wrong, *(part.length for part in buffer.parts)], device=device)
    dist.all_reduce(counts, group=buffer.group)
    wrong, *lengths = counts.tolist()
    partial = sum(n != part.shape.numel() for n, part in zip(lengths, buffer.parts, strict=True))
    if wrong or partial:
        raise _unreadable(
            zero,
            f"in buffer {index}, {wrong} parts do not hold their parameter's values and {partial} of "
            f"{len(lengths)} parameters are not covered exactly once",
        )


def _unreadable(zero: Any, why: str) -> ShardingError:
    return ShardingError(
        f"LAMB cannot tell where the parameters lie in the buffers of {type(zero).__name__} of DeepSpeed "
        f"{importlib.metadata.version('deepspeed')} (written against {', '.join(CHECKED)}): {why}. "
        "Use that version, DDP or FSDP2, or another optimizer"
    )

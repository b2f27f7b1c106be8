"""Tensors that say they are on cuda:0, and are computed on the CPU.

An operation that mixes them with CPU tensors where CUDA would refuse raises `Mixed`. What would make the host wait for
the device is counted by `Waits`, with the place in the package. Neither cuDNN nor NCCL, kernels, streams, races or
memory are seen.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)

# Operators that may see tensors of both devices.
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED_WRITES = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
INDEXING = INDEXED_WRITES | {aten.index.Tensor, aten._unsafe_index.Tensor}
# Operators whose result's size is known on the device only.
SIZED = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::is_nonzero",
}
SENT: set[int] = set()  # addresses of what went through collectives
ELSEWHERE = ("?", "?")


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


class Waits:
    """Counts what makes the host wait, by (file, function, kind), between `begin` and `end`."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str, str]] = Counter()
        self.steps = self.skipped = 0
        self.counting = False

    def begin(self) -> None:
        self.counting = True

    def end(self) -> None:
        self.counting = False

    def add(self, kind: str) -> None:
        if self.counting:
            self.found[(*_place(), kind)] += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before, self.counting = self.counting, False
        try:
            yield
        finally:
            self.counting = before


WAITS = Waits()


def _place() -> tuple[str, str]:
    """File and function of the innermost frame that is the package's."""
    frame = sys._getframe(1)
    while frame is not None:
        _, inside, path = frame.f_code.co_filename.rpartition("/dtrain/")
        if inside:
            return path, frame.f_code.co_qualname.replace(".<locals>", "")
        frame = frame.f_back  # type: ignore[assignment]
    return ELSEWHERE


class OnDevice(Tensor):
    """A tensor of the pretended device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA,
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({self.inner})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: object, size: object, stride: object) -> OnDevice:
        return OnDevice(inner["inner"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made: Tensor = OnDevice(self.inner.detach().clone())
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if hasattr(self, "_is_param") else made
        return memo[id(self)]

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, OnDevice):
            raise Mixed("the data of a CUDA tensor set to a CPU tensor's")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def tolist(self) -> Any:
        WAITS.add("tolist")
        return self.inner.tolist()

    def numpy(self, *args: object, **named: object) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args: object, **named: object) -> Any:
        return self.numpy()

    def pin_memory(self, *args: object) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class Factories(TorchDispatchMode):
    """Operators that make tensors on the device from none."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own dispatch comes back with the tensors inside of it
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator, as CUDA would take or refuse it."""
    name = function._schema.name
    asked = kwargs.get("device")
    device = torch.device(asked) if asked is not None else None
    to_cuda = device is not None and device.type == "cuda"
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if not ours and not to_cuda:
        return function(*args, **kwargs)
    if name.startswith("c10d::"):  # gloo answers with the very tensors it was given
        SENT.update(tensor.inner.untyped_storage().data_ptr() for tensor in ours)
    if ours:
        _refuse_mixed(function, name, args, tensors)
        _count_waits(function, name, args, kwargs, device)
    elif function is aten._to_copy.default and not kwargs.get("non_blocking"):
        WAITS.add("copy to the device that blocks")

    if to_cuda:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        flat, spec = pytree.tree_flatten((args, kwargs))
    inner_args, inner_kwargs = pytree.tree_unflatten([_inner(value) for value in flat], spec)
    inner_kwargs.pop("pin_memory", None)
    out = OWN.get(name, function)(*inner_args, **inner_kwargs)
    if function is aten.copy_.default:
        return args[0]
    if device is not None and not to_cuda:
        return out
    if name == "aten::_conj":
        return OnDevice(out.resolve_conj())
    known = {id(tensor.inner): tensor for tensor in ours}

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnDevice):
            return value
        return known[id(value)] if id(value) in known else OnDevice(value)

    if name == "aten::_pack_padded_sequence":  # batch sizes stay on the CPU
        return outer(out[0]), out[1]
    out = pytree.tree_map(outer, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if ours else out


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _refuse_mixed(function: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    plain = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    if function in COPIES or name == "aten::_pack_padded_sequence" or not plain:
        return
    if function in INDEXING:
        if not isinstance(args[0], OnDevice):
            raise Mixed(f"{function}: a CPU tensor indexed by CUDA tensors")
        if function in INDEXED_WRITES and any(args[2] is tensor and tensor.dim() for tensor in plain):
            raise Mixed(f"{function}: CPU values written into a CUDA tensor")
        return
    # CUDA takes 0-d CPU tensors as numbers, but in fused kernels.
    bad = [tensor for tensor in plain if tensor.dim() > 0 or "fused" in name]
    if bad:
        raise Mixed(
            f"{function}: Expected all tensors to be on the same device, but found cuda:0 and cpu {tuple(bad[0].shape)}"
        )


def _count_waits(function: Any, name: str, args: Any, kwargs: dict[str, Any], device: torch.device | None) -> None:
    if function is aten._local_scalar_dense.default:
        WAITS.add("item")
    if name in SIZED:
        WAITS.add(name.removeprefix("aten::"))
    if function in INDEXING:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        if any(not isinstance(index, OnDevice) for index in indices):
            WAITS.add("index on the CPU")
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            WAITS.add("index of booleans")
    if function is aten._to_copy.default and device is not None and device.type == "cpu":
        WAITS.add("copy to the host")
    if function is aten.copy_.default:
        non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if not isinstance(args[0], OnDevice):
            WAITS.add("copy to the host")
        elif not (isinstance(args[1], OnDevice) or non_blocking or _answer_of_gloo(args[1])):
            WAITS.add("copy to the device that blocks")


def _answer_of_gloo(tensor: Tensor) -> bool:
    """Whether DDP copies this from a collective's answer, which on a real device is the bucket itself."""
    return tensor.untyped_storage().data_ptr() in SENT and _place() == ELSEWHERE


# --- kernels that a CPU does not have --------------------------------------------------------------------------------


def _lstm_cell(
    from_input: Tensor,
    from_state: Tensor,
    cell: Tensor,
    input_bias: Tensor | None = None,
    state_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    gates = from_input + from_state
    if input_bias is not None and state_bias is not None:
        gates = gates + input_bias + state_bias
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new = f * cell + i * g
    return o * new.tanh(), new, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(
    to_state: Tensor | None, to_cell: Tensor | None, before: Tensor, after: Tensor, kept: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    i, f, g, o = kept.chunk(4, 1)
    t = after.tanh()
    state = to_state if to_state is not None else torch.zeros_like(after)
    cell = state * o * (1 - t * t) + (to_cell if to_cell is not None else 0)
    gates = torch.cat(
        [cell * g * i * (1 - i), cell * before * f * (1 - f), cell * i * (1 - g * g), state * t * o * (1 - o)], 1
    )
    return gates, cell * f, gates.sum(0) if has_bias else None


OWN: dict[str, Any] = {
    "aten::_thnn_fused_lstm_cell": _lstm_cell,
    "aten::_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
}

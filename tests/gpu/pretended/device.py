"""Puts the pretended device in the place of torch's CUDA, in this process and for good."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.cuda.amp.common
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard import _fsdp_init
from torch.overrides import TorchFunctionMode

from tests.gpu.pretended.tensors import CUDA, WAITS, Factories, OnDevice

_tensor, _generator = torch.tensor, torch.Generator
_entered: list[Any] = []  # modes that stay on; parameters that must not be freed


class Stream:
    """A stream on which everything has always been done."""

    device_index = 0

    def __init__(self, *args: object, **named: object) -> None: ...
    def wait_stream(self, other: object) -> None: ...
    def wait_event(self, other: object) -> None: ...
    def record_event(self, *args: object) -> Event:
        return Event()

    def synchronize(self) -> None:
        WAITS.add("stream.synchronize")


class Event:
    def __init__(self, *args: object, **named: object) -> None: ...
    def record(self, *args: object) -> None: ...
    def wait(self, *args: object) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 1.0

    def synchronize(self) -> None:
        WAITS.add("event.synchronize")


class Generators:
    """`torch.Generator` for either device."""

    def __new__(cls, device: object = "cpu") -> Any:
        return _generator()


class Tensors(TorchFunctionMode):
    """`torch.tensor(..., device='cuda')`, which the dispatcher does not see: a copy from pageable memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if function is not _tensor or device is None or torch.device(device).type != "cuda":
            return function(*args, **kwargs)
        WAITS.add("torch.tensor on the device")
        with WAITS.paused():
            made = _tensor(*args, **{**kwargs, "device": "cpu", "requires_grad": False}).to(CUDA)
        return made.requires_grad_() if kwargs.get("requires_grad") else made


def _module_to(self: nn.Module, *args: Any, **named: Any) -> nn.Module:
    """`nn.Module.to`: a parameter cannot change its device in place here, so new ones take the place of the old."""
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **named)
    new: dict[int, nn.Parameter] = {}
    for module in self.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            wanted = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
            if (device is None or parameter.device.type == device.type) and wanted == parameter.dtype:
                continue
            if id(parameter) not in new:
                moved = parameter.detach().to(device or parameter.device, wanted)
                new[id(parameter)] = nn.Parameter(moved, parameter.requires_grad)
                _entered.append(parameter)
            module._parameters[name] = new[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to(*args, **named)
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    return self


def _inference_mode(mode: Any = True) -> Any:
    """Views of wrapped tensors have no version in inference mode."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else contextlib.nullcontext()


def _in_threads(submit: Callable[..., Any]) -> Callable[..., Any]:
    """Dispatch modes belong to a thread: work handed to another one enters them there."""

    def submit_with_mode(self: Any, work: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        def with_mode() -> Any:
            with Factories(), Tensors():
                return work(*args, **named)

        return submit(self, with_mode)

    return submit_with_mode


def install(name: str = "NVIDIA H100 80GB HBM3", capability: tuple[int, int] = (9, 0)) -> None:
    """From now on there is one CUDA device, of this name."""
    stream = Stream()
    replaced: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "synchronize": lambda *args, **named: WAITS.add("synchronize"),
        "_lazy_init": lambda *args, **named: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (80 * 10**9, 80 * 10**9),
        "get_device_name": lambda device=None: name,
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda including_emulation=True: capability[0] >= 8,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "is_current_stream_capturing": lambda: False,
    }
    for attribute, value in replaced.items():
        setattr(torch.cuda, attribute, value)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.Generator = Generators  # type: ignore[misc,assignment]
    torch.inference_mode = _inference_mode  # type: ignore[misc,assignment]
    Tensor.record_stream = lambda self, stream: None  # type: ignore[assignment,method-assign]
    Tensor.pin_memory = lambda self, *args: self  # type: ignore[assignment,method-assign]
    nn.Module.to = _module_to  # type: ignore[assignment,method-assign]
    nn.Module.cpu = lambda self: self.to("cpu")  # type: ignore[method-assign]
    nn.Module.cuda = lambda self, device=None: self.to("cuda")  # type: ignore[method-assign]
    # DDP's times of its passes, which it takes with events of CUDA.
    dist.Logger.set_runtime_stats_and_log = lambda self: None  # type: ignore[attr-defined]
    nn.parallel._functions._streams = [None]  # of the device's copies of inputs, which DDP lists by number
    # FSDP2 changes a buffer's device in place, see `_module_to`; the engine moves buffers after it.
    _fsdp_init._move_states_to_device = lambda params, buffers, device: None
    pool = concurrent.futures.ThreadPoolExecutor
    pool.submit = _in_threads(pool.submit)  # type: ignore[method-assign]
    for mode in (Tensors(), Factories()):
        mode.__enter__()
        _entered.append(mode)


__all__ = ["OnDevice", "install"]

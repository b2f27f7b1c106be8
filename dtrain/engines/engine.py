"""What training asks of the hardware: placement, precision, synchronisation, clipping, weights and state as a whole.

With `Engine` this rank trains a model alone, or all ranks train one together with a copy each (DDP). The engines of
`fsdp` and `zero` spread the model over the ranks instead; `choose` picks the one that the launch asks for.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dtrain.engines.lamb import Lamb
from dtrain.engines.optim import step_count
from dtrain.engines.precision import autocast
from dtrain.engines.shard_layout import is_dtensor
from dtrain.engines.speed import model_flops
from dtrain.errors import DtrainError
from dtrain.losses.objective import Objective
from dtrain.runtime.distributed import World

Turn = Literal["model", "losses"]  # what a step trains, where the two are trained in turn


class Engine:
    """A model with its losses and its optimizer, ready for steps: on this rank alone, or a copy on every rank (DDP).

    Subclasses spread one model over the ranks. Methods marked *collective* are collectives if `data_parallel`: every
    rank calls them, in the same order.

    Attributes:
        model: what is called in training; DDP's wrapper, for example.
        module: the module inside, usually an objective (model and losses); a subclass may have sharded its parameters.
        optimizer: the caller sets the rates of its groups before each step.
        data_parallel: whether all ranks train this model; `rank` and `ranks` are then the launch's, otherwise 0 and 1.
        flops: those of the whole model, from `model_flops`.
    """

    def __init__(
        self,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        data_parallel: bool,
        precision: str,
    ) -> None:
        self._place(world, model, data_parallel, precision)
        self.optimizer = optimizer
        self.module = model.to(world.device)
        self.model: nn.Module = self.module
        if self.data_parallel:
            # Not through Accelerate, which would move a rank's inputs to the GPU with the rank's number: over gloo,
            # ranks may share one. As views, gradients are stored only in the buckets that are reduced.
            self.model = DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    def _place(self, world: World, model: nn.Module, data_parallel: bool, precision: str) -> None:
        self.world = world
        self.precision = precision
        self.data_parallel = data_parallel and world.size > 1
        self.ranks = world.size if self.data_parallel else 1
        self.rank = world.rank if self.data_parallel else 0
        self.flops = model_flops(Objective.inner(model))
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        self._scale: float | None = None  # the scaler's loss scale, where it is known on the host

    @property
    def inner(self) -> nn.Module:
        """The model itself, without its losses; a subclass may have sharded its parameters."""
        return Objective.inner(self.module)

    # --- a step --------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.precision, self.world.device)

    def synchronise_when(self, last: bool) -> AbstractContextManager[Any]:
        """A region for the passes of one micro-batch: gradients are reduced over ranks with the `last` of a step only."""
        return contextlib.nullcontext() if last or not self.data_parallel else self.model.no_sync()  # type: ignore[operator]

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, a 0-d tensor: this rank's share of a sum over all ranks."""
        # DDP and FSDP2 average gradients over ranks, and the gradient of a sum is wanted.
        self.scaler.scale(loss * self.ranks).backward()

    def warm_up(self, forward: Callable[[], torch.Tensor]) -> None:
        """Before the first step: one forward and backward pass whose gradients are dropped (a collective).

        DDP lays out its buckets anew after the first backward pass, in the order in which gradients came. Three or more
        ranks add the numbers of a bucket in an order that depends on their place in it. Without this pass the first step
        after a restart would round differently from the same step of a run that was never stopped.

        Args:
            forward: gives the loss of any row.
        """
        if self.data_parallel:
            with self.autocast():
                loss = forward()
            self.backward(loss * 0.0)
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, clip: float | None = None, only: Turn | None = None) -> tuple[torch.Tensor, bool]:
        """Clip the gradients to a global norm of `clip` and apply them (a collective).

        Args:
            only: train the model alone, or the weights of its losses alone: the gradients of the other are dropped, and
                its weights, moments and step counts stay as they are. None: train both.

        Returns:
            The norm before clipping, a 0-d tensor on the device, so that nothing waits for it; and whether the step was
            applied: False where fp16 overflowed and every rank skipped it.
        """
        if only is not None:
            for name, parameter in self.module.named_parameters():
                if name.startswith("losses.") != (only == "losses"):
                    parameter.grad = None
        self.scaler.unscale_(self.optimizer)
        norm = self._clip(float("inf") if clip is None else clip)
        before = self.loss_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._scale = None
        self.optimizer.zero_grad(set_to_none=True)
        return norm, self.precision != "fp16" or self.loss_scale() >= before

    def _clip(self, limit: float) -> torch.Tensor:
        """Clip as `torch.nn.utils.clip_grad_norm_`, to the same bits; returns the norm before clipping, a 0-d tensor.

        On a CPU, where reading the norm waits for no device, gradients below the limit are not multiplied by 1, which
        saves a pass over all of them.
        """
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if is_dtensor(norm) or norm.device.type != "cpu" or not (norm + 1e-6 <= limit and norm.isfinite()):
            nn.utils.clip_grads_with_norm_(self.module.parameters(), limit, norm)
        return whole(norm)

    def loss_scale(self) -> float:
        """What fp16 losses are multiplied by; 1 in other precisions."""
        if self.precision != "fp16":
            return 1.0
        if self._scale is None:  # each look waits for the device
            self._scale = self.scaler.get_scale()
        return self._scale

    def parameter_norm(self) -> torch.Tensor:
        """The Euclidean norm of all trained weights, a float64 0-d tensor on the device (a collective)."""
        norms = [
            whole(n) for n in torch._foreach_norm([p.detach() for p in self.module.parameters() if p.requires_grad])
        ]
        return torch.stack([norm.double() for norm in norms]).norm()

    def watched(self) -> dict[str, float]:
        """Numbers of the last step for TensorBoard, besides its loss (a collective)."""
        found = {"parameter_norm": float(self.parameter_norm())}
        return found | {"loss_scale": self.loss_scale()} if self.precision == "fp16" else found

    def trust_ratios(self) -> dict[str, torch.Tensor]:
        """The trust ratios of the last step, see `Lamb.trust_ratios`; empty for other optimizers."""
        return self.optimizer.trust_ratios() if isinstance(self.optimizer, Lamb) else {}

    # --- whole weights and state ---------------------------------------------------------------------

    @contextlib.contextmanager
    def full_model(self) -> Iterator[nn.Module]:
        """A region with the model for evaluation, all its weights on this rank (a collective)."""
        yield self.inner

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole copies of the model's weights and buffers on the CPU, by name; empty where `rank` is not 0 (a collective).

        Weights of losses are left out.
        """
        weights = self._collected(self._weights())
        if not isinstance(self.module, Objective):
            return weights
        return {name.removeprefix("model."): t for name, t in weights.items() if name.startswith("model.")}

    def loss_weights(self) -> dict[str, torch.Tensor]:
        """As `weights`, of the losses' weights, by their names within `Objective.losses` (a collective)."""
        weights = self._collected(self._weights())
        return {name.removeprefix("losses."): t for name, t in weights.items() if name.startswith("losses.")}

    def with_weights(self, weights: dict[str, torch.Tensor]) -> nn.Module:
        """A copy of the model on the CPU with these weights, which `weights()` gave; the model itself stays as it is."""
        # A copy made on the device would need the model's memory there once more.
        model = blank(self.inner, "cpu").cpu()
        model.load_state_dict(weights)
        return model

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a training needs to continue, besides its position (a collective).

        Returns:
            Whole tensors on the CPU: `weight/NAME` (float32 where trained), `optimizer/FIELD/NAME` and `scaler/FIELD`,
            where NAME is that of a parameter; empty where `rank` is not 0. They do not depend on the engine or the number
            of ranks, so that training can continue with others.
        """
        tensors = itertools.chain(
            ((f"weight/{name}", tensor) for name, tensor in self._weights()),
            ((f"optimizer/{field}/{name}", tensor) for field, name, tensor in self._optimizer_state()),
            ((f"scaler/{field}", torch.tensor(value)) for field, value in self._scaler_state().items()),
        )
        return self._collected(tensors)

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from what `state` gave; every rank is handed all of it and takes its share (a collective).

        Raises:
            DtrainError: naming a weight that is missing or has another shape.
        """
        saved: dict[str, dict[str, torch.Tensor]] = {"weight": {}, "optimizer": {}, "scaler": {}}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            saved[kind][rest] = tensor
        own = dict(self._shapes())
        for name in sorted(own.keys() | saved["weight"].keys()):
            found = saved["weight"].get(name)
            if name not in own or found is None or found.shape != own[name]:
                raise DtrainError(f"checkpoint: weight {name} is missing, unknown or of another shape")
        by_name: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in saved["optimizer"].items():
            field, _, name = key.partition("/")
            by_name.setdefault(name, {})[field] = tensor
        with torch.no_grad():
            self._load(saved["weight"], by_name)
        if saved["scaler"]:
            self._load_scaler({field: float(tensor) for field, tensor in saved["scaler"].items()})

    def close(self) -> None:
        """Free the memory of the weights and the optimizer's state; the engine is of no use after this.

        Dropping this object is not enough: the traceback of a failure may refer to it, weights that were part of a
        stack keep the whole stack, and DDP's buckets are freed with its wrapper.
        """
        self.optimizer.state.clear()
        for parameter in self.module.parameters():
            parameter.grad, parameter.data = None, torch.empty(0, device=parameter.device)
        if self.data_parallel:
            self.model = self.module
            gc.collect()
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()

    def _collected(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Copy to the CPU one by one: the device may not have room for all whole tensors at once."""
        kept = {}
        for name, tensor in tensors:
            if self.rank == 0:
                kept[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return kept

    def _shapes(self) -> Iterator[tuple[str, torch.Size]]:
        for name, tensor in self.module.state_dict().items():
            yield name, tensor.shape

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.module.state_dict().items():
            yield name, whole(tensor)

    def _optimizer_state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(field, parameter name, tensor) of the parameter's shape, or 0-d for its step count."""
        for name, p in self.module.named_parameters():
            for field, tensor in self.optimizer.state.get(p, {}).items():
                if isinstance(tensor, torch.Tensor):
                    yield field, name, whole(tensor)

    def _load(self, weights: dict[str, torch.Tensor], state: dict[str, dict[str, torch.Tensor]]) -> None:
        for name, tensor in self.module.state_dict().items():
            tensor.copy_(self._placed(weights[name], tensor))
        for name, p in self.module.named_parameters():
            fields = {
                field: step_count(tensor, self.optimizer, p)
                if tensor.dim() == 0 < p.dim()
                else torch.zeros_like(p).copy_(self._placed(tensor, p))
                for field, tensor in state.get(name, {}).items()
            }
            if fields:
                self.optimizer.state[p] = fields

    def _placed(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """This rank's share of a whole `tensor`, sharded as `like` is."""
        return tensor

    def _scaler_state(self) -> dict[str, float]:
        """The loss scale, and how many steps have gone well since it last changed."""
        if self.precision != "fp16":
            return {}
        state = self.scaler.state_dict()
        return {"scale": state["scale"], "good_steps": float(state["_growth_tracker"])}

    def _load_scaler(self, state: dict[str, float]) -> None:
        if self.precision == "fp16":
            own = {"scale": state["scale"], "_growth_tracker": int(state["good_steps"])}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **own})
            self._scale = None


def blank(model: nn.Module, device: str = "meta") -> nn.Module:
    """A copy with every parameter on `device`, its values undefined; buffers are copied where they are."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, dict(empty))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a DTensor, on every rank (a collective); any other tensor as it is."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor

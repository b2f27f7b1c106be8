"""LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2) with one trust ratio for each parameter, however it is sharded.

Sharding enters in one place only: a `Layout` says which whole parameters a tensor holds pieces of and over
which process groups their squared norms are summed. Plain tensors and DTensor (FSDP2, tensor parallel) are
recognised here; flat buffers such as DeepSpeed ZeRO's need a layout attached (`zero_internals.attach_zero`).
A tensor whose layout is unknown is refused: its norm would be that of an arbitrary slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from dtrain.engines.shard_layout import Layout, ShardingError, dtensor_layout, is_dtensor, local, placed_like, whole

HALF = (torch.float16, torch.bfloat16)
STREAMED = 2**20  # elements; on a CPU a batch with as many is closed, and further tensors go into another one


@dataclass
class _Batch:
    """Pieces with the same hyper-parameters, step count and reduction, for one multi-tensor call."""

    group: dict[str, Any]
    step: int
    adapted: bool
    layout: Layout  # of its first tensor; the others have the same groups
    device: torch.device
    owner: tuple[int, int]  # its first tensor's id and part, to tell one call's statistics from another's
    weights: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)  # by parameter: is a piece of it on this rank?
    updates: list[Tensor] = field(default_factory=list)
    size: int = 0  # elements on this rank

    @property
    def streamed(self) -> bool:
        """Whether batches are processed one by one: on a CPU, where norms are not reduced over ranks.

        Updates then reuse the same memory. New memory for all of them would come in pages that the kernel clears
        first, which would double the time of the whole step.
        """
        return self.device.type == "cpu" and not self.layout.groups


class Lamb(Optimizer):
    """LAMB: Adam's direction plus decoupled decay, rescaled per parameter to the norm of its weights.

    With `r = m̂ / (√v̂ + eps) + weight_decay · w`, every step does `w -= lr · ratio · r`, where
    `ratio = min(‖w‖ / ‖r‖, max_trust_ratio)` over the whole parameter, and 1 where either norm is zero.

    Which parameters are adapted (all others take ratio 1, which makes their step AdamW):
    the group's `adapt` where it is True or False; otherwise (`adapt=None`) all if `adapt_1d`, else those
    with two or more dimensions in a group with `weight_decay != 0`. So biases and LayerNorm are not adapted
    by default. An attention key's bias has a mathematically zero gradient: keep it in a group that is not
    adapted, or its rounding error is scaled up to the size of its weights.

    State and arithmetic are float32 (float64 for float64 parameters); float16 and bfloat16 parameters get a
    float32 `master` copy in the state, from which they are rounded after each step, so weights loaded by hand
    after the first step need a new optimizer or its matching state. Moments of a DTensor are DTensors.

    Args:
        params: tensors, or groups overriding any of the options below (and `adapt`).
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: λ of the paper.
        bias_correction: divide the moments by 1 − βᵗ.
        adapt_1d: adapt vectors, scalars and groups without decay too.
        max_trust_ratio: upper bound of the ratio, or None.
        foreach: multi-tensor kernels, on devices with torch's fused AdamW (CPU and CUDA have it); False is
            the per-tensor reference, equal up to rounding.

    Raises:
        ValueError: an option out of range.
        ShardingError: at a step (or for FSDP1's flat parameters, at construction), a tensor that is not one
            the optimizer was built with, not a DTensor, and without an attached layout.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        adapt_1d: bool = False,
        max_trust_ratio: float | None = 10.0,
        foreach: bool = True,
    ) -> None:
        self._reset()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "adapt_1d": adapt_1d,
            "max_trust_ratio": max_trust_ratio,
            "foreach": foreach,
            "adapt": None,
        }
        super().__init__(params, defaults)

    def _reset(self) -> None:
        # Weak keys: after `fully_shard` the unsharded originals must be free to go.
        self._shapes = WeakTensorKeyDictionary()
        self._layouts = WeakTensorKeyDictionary()
        self._ratios: dict[tuple[int, int], Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # saved by a version with fewer options
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if "_shapes" not in self.__dict__:  # unpickled or copied, not merely loaded with a state_dict
            self._reset()
            for group in self.param_groups:
                self._remember(group["params"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in `torch.optim.Optimizer`, checking its options."""
        options = {**self.defaults, **param_group}
        for name in ("lr", "eps", "weight_decay"):
            if not options[name] >= 0.0:
                raise ValueError(f"{name} = {options[name]}: expected a number >= 0")
        if not all(0.0 <= beta < 1.0 for beta in options["betas"]):
            raise ValueError(f"betas = {options['betas']}: expected two numbers in [0, 1)")
        if options["max_trust_ratio"] is not None and not options["max_trust_ratio"] > 0.0:
            raise ValueError(f"max_trust_ratio = {options['max_trust_ratio']}: expected a number > 0, or None")
        super().add_param_group(param_group)
        self._remember(self.param_groups[-1]["params"])

    def _remember(self, params: Iterable[Tensor]) -> None:
        for p in params:
            # Set by FSDP1 on its flat parameter and, under use_orig_params, on the slices it leaves behind.
            if getattr(p, "_fsdp_flattened", False):
                raise ShardingError(
                    "LAMB needs the norm of whole parameters, which FSDP version 1 does not keep: "
                    "use FSDP2 (fully_shard; in an Accelerate config fsdp_version: 2)"
                )
            if getattr(p, "tensor_model_parallel", False):
                raise ShardingError(
                    "LAMB was given a tensor-parallel slice as a plain tensor (tensor_model_parallel is "
                    "set): shard it as a DTensor, whose whole norm is known, or do without tensor parallelism"
                )
            self._shapes[p] = p.shape

    def attach_layout(self, tensor: Tensor, layout: Layout) -> None:
        """Say what `tensor`, a 1-D buffer that an engine steps in place of parameters, is made of.

        Raises:
            ShardingError: parts overlap or lie outside of the tensor.
        """
        layout.check(tensor)
        self._layouts[tensor] = layout

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state into copies of the right dtype and memory layout.

        torch would round the float32 state of half-precision parameters to 16 bits, and share memory with
        `state_dict`. A state without master weights (of a float32 run) takes them from the parameters.
        """
        super().load_state_dict(state_dict)
        saved_ids = (i for group in state_dict["param_groups"] for i in group["params"])
        params = (p for group in self.param_groups for p in group["params"])
        for saved_id, p in zip(saved_ids, params, strict=True):
            saved = state_dict["state"].get(saved_id)
            if saved:
                state = self._new_state(p)
                for name in state.keys() & saved.keys():
                    if state[name].shape != saved[name].shape:
                        raise ValueError(
                            f"{name} of shape {tuple(saved[name].shape)} for a parameter of shape {tuple(p.shape)}"
                        )
                    state[name].copy_(saved[name])
                self.state[p] = state

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; ranks of a sharded parameter must call together.

        Makes one all-reduce, of two float64 numbers a parameter, for each set of process groups that shards some.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        masters: list[tuple[Tensor, Tensor]] = []
        batches = self._collect(masters)
        streamed = [[batch] for batch in batches if batch.streamed]
        ratios: dict[tuple[int, int], Tensor] = {}
        for data_parallel in [*streamed, [batch for batch in batches if not batch.streamed]]:
            for batch in data_parallel:
                batch.updates = _directions(batch)
            ratios |= _trust_ratios([batch for batch in data_parallel if batch.adapted])
            for batch in data_parallel:
                _apply(batch, ratios.get(batch.owner) if batch.adapted else None)
                batch.updates = []
        for p, master in masters:
            p.copy_(master)

        # An engine may call once for each of its buffers: a buffer that comes again starts a new collection.
        if self._ratios.keys() & ratios.keys():
            self._ratios.clear()
        self._ratios.update(ratios)
        return loss

    def trust_ratios(self) -> dict[str, Tensor]:
        """Trust ratios of the adapted parameters at the last step, for logging.

        Returns:
            `values` (float64, [adapted parameters]) and its `min`, `median`, `max` (0-d), on the device they
            were computed on and the same on every rank; empty before the first step.
        """
        if not self._ratios:
            return {}
        values = torch.cat([ratio.to(next(iter(self._ratios.values())).device) for ratio in self._ratios.values()])
        return {"values": values, "min": values.min(), "median": values.median(), "max": values.max()}

    def _collect(self, masters: list[tuple[Tensor, Tensor]]) -> list[_Batch]:
        """Sort the local pieces of all tensors into batches, and note (tensor, its master) in `masters`."""
        batches: list[_Batch] = []
        open_ones: dict[tuple[Any, ...], _Batch] = {}
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise ValueError("LAMB does not take sparse gradients: build the embedding with sparse=False")
                layout = self._layout(p)
                state = self.state[p]
                if not state:
                    state.update(self._new_state(p))
                state["step"] += 1
                step = int(state["step"])  # kept on the CPU, so this waits for no device
                if "master" in state:
                    masters.append((p, state["master"]))
                weight = local(state.get("master", p))
                grad = local(placed_like(p.grad, p)).to(weight.dtype)
                if grad.stride() != weight.stride():  # the kernels need both in the same memory layout
                    grad = torch.empty_like(weight).copy_(grad)
                tensors = (weight, grad, local(state["exp_avg"]), local(state["exp_avg_sq"]))
                for number, part in enumerate(layout.parts):
                    adapted = _is_adapted(part.shape, group)
                    key = (index, step, adapted, layout.groups, layout.device, weight.device, weight.dtype)
                    batch = open_ones.get(key)
                    if batch is None or (batch.streamed and batch.size >= STREAMED):
                        batch = open_ones[key] = _Batch(group, step, adapted, layout, weight.device, (id(p), number))
                        batches.append(batch)
                    batch.present.append(part.length > 0)
                    batch.size += part.length
                    if part.length:
                        lists = (batch.weights, batch.grads, batch.exp_avgs, batch.exp_avg_sqs)
                        for pieces, t in zip(lists, tensors, strict=True):
                            alone = part.length == t.numel()
                            pieces.append(t if alone else t.narrow(0, part.start, part.length))
        return batches

    def _layout(self, p: Tensor) -> Layout:
        if is_dtensor(p):
            return dtensor_layout(p)
        attached: Layout | None = self._layouts.get(p)
        if attached is not None:
            return attached
        if self._shapes.get(p) != p.shape:
            raise ShardingError(
                f"LAMB was handed a {p.dim()}-D tensor of {p.numel()} elements in place of the parameters "
                "it was built with, and does not know which parameters lie in it. Under DeepSpeed ZeRO 1, 2 "
                "or 3 call dtrain.engines.zero_internals.attach_zero(optimizer, engine) after "
                "deepspeed.initialize or accelerator.prepare. DeepSpeed stage 0 in fp16 or bf16 is not "
                "supported, since it steps on zero gradients when it is built: use ZeRO stage 1, or DDP "
                "with autocast"
            )
        return whole(p)

    @staticmethod
    def _new_state(p: Tensor) -> dict[str, Tensor]:
        dtype = torch.float32 if p.dtype in HALF else p.dtype
        state = {
            "step": torch.zeros((), dtype=torch.float32, device="cpu"),
            "exp_avg": torch.zeros_like(p, dtype=dtype),
            "exp_avg_sq": torch.zeros_like(p, dtype=dtype),
        }
        if p.dtype in HALF:
            state["master"] = p.detach().to(dtype)
        return state


def _is_adapted(shape: torch.Size, group: dict[str, Any]) -> bool:
    if group["adapt"] is not None:
        return bool(group["adapt"])
    return bool(group["adapt_1d"] or (len(shape) > 1 and group["weight_decay"] != 0))


def _directions(batch: _Batch) -> list[Tensor]:
    """Update the moments and return `m̂ / (√v̂ + eps) + weight_decay · w` for every piece."""
    group = batch.group
    beta1, beta2 = group["betas"]
    # 1 − β^∞ = 1: no correction.
    step = float(batch.step) if group["bias_correction"] else math.inf
    if not batch.weights:
        return []
    if group["foreach"]:
        # The fused AdamW kernel with rate −1 adds the direction to the tensors that are passed as weights: here
        # the decay term. That takes one pass instead of a dozen, with the same kernel on CPU and GPU.
        updates = list(torch._foreach_mul(batch.weights, group["weight_decay"]))
        steps = [torch.full((), step, dtype=torch.float32, device=batch.device)] * len(updates)
        torch._fused_adamw_(
            updates,
            batch.grads,
            batch.exp_avgs,
            batch.exp_avg_sqs,
            [],
            steps,
            lr=-1.0,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        return updates
    updates = []
    for w, g, m, v in zip(batch.weights, batch.grads, batch.exp_avgs, batch.exp_avg_sqs, strict=True):
        m.mul_(beta1).add_(g, alpha=1.0 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        m_hat, v_hat = m / (1.0 - beta1**step), v / (1.0 - beta2**step)
        updates.append(m_hat / (v_hat.sqrt() + group["eps"]) + group["weight_decay"] * w)
    return updates


def _trust_ratios(batches: Sequence[_Batch]) -> dict[tuple[int, int], Tensor]:
    """Ratios (float64, [parameters of the batch]) by batch owner, with one reduction for each set of process groups.

    No value is read on the host, so nothing waits for a GPU.
    """
    reductions: dict[tuple[Any, ...], list[_Batch]] = {}
    for batch in batches:
        reductions.setdefault((batch.layout.groups, batch.layout.device, batch.device), []).append(batch)
    ratios = {}
    for (process_groups, device, home), alike in reductions.items():
        squares = torch.cat([torch.stack((_squares(b, b.weights), _squares(b, b.updates))) for b in alike], dim=1)
        if process_groups:
            squares = squares.to(device)
            for process_group in process_groups:
                dist.all_reduce(squares, group=process_group)
            squares = squares.to(home)
        for batch, square in zip(alike, squares.split([len(b.present) for b in alike], dim=1), strict=True):
            w, r = square.sqrt()
            ratio = torch.where((w > 0) & (r > 0), w / r, 1.0)
            limit = batch.group["max_trust_ratio"]
            ratios[batch.owner] = ratio if limit is None else ratio.clamp(max=limit)
    return ratios


def _squares(batch: _Batch, pieces: list[Tensor]) -> Tensor:
    """The squared norm of this rank's piece of every parameter of the batch, 0 where it has none; float64."""
    if not batch.group["foreach"]:
        norms = [torch.linalg.vector_norm(t, dtype=torch.float64) for t in pieces]
    elif batch.device.type == "cpu":
        norms = [_cpu_norm(t) for t in pieces]
    else:
        norms = list(torch._foreach_norm(pieces)) if pieces else []
    found = iter(norms)
    zero = torch.zeros((), dtype=norms[0].dtype if norms else torch.float64, device=batch.device)
    return torch.stack([next(found) if here else zero for here in batch.present]).double().square()


def _cpu_norm(t: Tensor, block: int = 4096) -> Tensor:
    """Euclidean norm (float64) from float32 norms of blocks.

    On the CPU torch sums a float32 norm in few lanes, which is 1e-3 off at 20M elements: sharded and whole
    parameters would disagree. With blocks the error is 1e-9 at the same speed; all in float64 would take 25 times as
    long.
    """
    flat = t.reshape(-1)
    full = flat.numel() - flat.numel() % block
    norm = torch.linalg.vector_norm(flat[full:], dtype=torch.float64)
    if full:
        blocks = torch.linalg.vector_norm(flat[:full].view(-1, block), dim=1)
        norm = torch.hypot(norm, torch.linalg.vector_norm(blocks, dtype=torch.float64))
    return norm


def _apply(batch: _Batch, ratio: Tensor | None) -> None:
    """`w -= lr · ratio · update` in place; `ratio` None stands for 1."""
    lr = batch.group["lr"]
    if not batch.weights:
        return
    if ratio is None:
        torch._foreach_add_(batch.weights, batch.updates, alpha=-lr)
        return
    steps = (ratio * -lr).to(batch.weights[0].dtype).unbind()
    sizes = [size for size, here in zip(steps, batch.present, strict=True) if here]
    if batch.group["foreach"]:
        torch._foreach_addcmul_(batch.weights, batch.updates, sizes)
    else:
        for w, update, size in zip(batch.weights, batch.updates, sizes, strict=True):
            w.add_(update * size)

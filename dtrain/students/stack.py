"""Parameters and optimizer state of K models of one structure, side by side in memory, and their common step.

A parameter of K members is one tensor [K, ...]. The members' own models and optimizers hold views of it, so that code
which scores, saves or loads a single model works unchanged. Rates, decay, moments' factors, step counts and clipping
are vectors over members.

As far as kernels allow, a member's numbers are the same in any stack, bit for bit. So each kernel does one operation (a
fused product and sum rounds differently in the last few elements of a tensor), and norms are of one member at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.engines.engine import Engine

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


class _Segment:
    """Parameters that every member's optimizer treats alike: values, gradients and moments, [K, elements] each."""

    def __init__(self, names: list[str], shapes: list[torch.Size], members: int, device: torch.device) -> None:
        self.names = names
        sizes = [math.prod(shape) for shape in shapes]
        self._shapes, self._ends = shapes, torch.tensor([0, *sizes]).cumsum(0).tolist()
        width = self._ends[-1] if len(names) == 1 else math.ceil(self._ends[-1] / 16) * 16
        self.values, self.gradients = (torch.zeros(members, width, device=device) for _ in range(2))
        self.moments: dict[str, Tensor] = {}

    def views(self, of: Tensor) -> dict[str, Tensor]:
        """Views of a tensor [K, elements], [K, ...] for each parameter, by name."""
        return {
            name: of[:, start:end].unflatten(1, shape)
            for name, shape, start, end in zip(self.names, self._shapes, self._ends, self._ends[1:], strict=False)
        }


class Stack:
    """K models and their optimizers, AdamW or SGD, in float32.

    Args:
        engines: of models of one structure with one kind of optimizer; their weights and states are moved here.
        kind: 'adamw' or 'sgd'.

    Attributes:
        weights: by name, [K, ...]; leaf tensors of autograd.
    """

    def __init__(self, engines: Sequence[Engine], kind: str) -> None:
        self.engines, self.kind = list(engines), kind
        self.models: list[nn.Module] = [engine.inner for engine in engines]
        self._parameters = [dict(model.named_parameters()) for model in self.models]
        self._groups = [self._group_of_each(engine, own) for engine, own in zip(engines, self._parameters, strict=True)]
        self._padding = {
            f"{name}.weight": module.padding_idx
            for name, module in self.models[0].named_modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        }
        self._segments = self._lay_out()
        self.weights: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._steps = [self._move_in(member) for member in range(len(self.engines))]
        for segment in self._segments:
            gradients = segment.views(segment.gradients)
            for name, view in segment.views(segment.values).items():
                self.weights[name], self._gradients[name] = view.detach().requires_grad_(), gradients[name]
        self._views = [
            {name: weight.detach()[member] for name, weight in self.weights.items()}
            for member in range(len(self.engines))
        ]

    def attach(self) -> None:
        """Make the models views of the stack again: scoring one may have moved it (to `cpu:0`, which makes a copy)."""
        for own, views in zip(self._parameters, self._views, strict=True):
            for name, view in views.items():
                if own[name].data_ptr() != view.data_ptr():
                    own[name].data = view

    def zero_grad(self) -> None:
        for segment in self._segments:
            segment.gradients.zero_()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, a sum over members."""
        found = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        for gradient, own in zip(found, self._gradients.values(), strict=True):
            if gradient is not None:
                own.add_(gradient)

    def step(self, clips: Sequence[float | None]) -> list[Tensor]:
        """Clip each member's gradients to its own limit and apply them.

        Returns:
            The norms before clipping, 0-d tensors on the device.
        """
        for name, row in self._padding.items():
            self._gradients[name][:, row].zero_()
        norms = self._norms()
        if any(clip is not None for clip in clips):
            limits = torch.tensor([math.inf if clip is None else clip for clip in clips])
            limits = limits.to(norms.device, non_blocking=True)
            factor = (limits / (norms + 1e-6)).clamp(max=1.0)[:, None]
            for segment in self._segments:
                segment.gradients.mul_(factor)
        for count in self._steps:
            count += 1
        for segment in self._segments:
            self._update(segment)
        return list(norms.unbind())

    def _norms(self) -> Tensor:
        """Gradient norms [K]; each from its member's numbers alone, so that it is the same in another stack."""
        pieces = [torch._foreach_norm(list(segment.gradients.unbind())) for segment in self._segments]
        return torch.stack([torch.stack(list(own)) for own in zip(*pieces, strict=True)]).norm(dim=1)

    def _update(self, segment: _Segment) -> None:
        groups = [own[segment.names[0]] for own in self._groups]
        counts = [float(count) for count in self._steps]
        values, gradients = segment.values, segment.gradients

        def each(numbers: Sequence[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64).to(values.device, values.dtype, non_blocking=True)[
                :, None
            ]

        if self.kind == "sgd":
            buffer = segment.moments["momentum_buffer"]
            decayed = gradients + values * each([g["weight_decay"] for g in groups])
            buffer.mul_(each([g["momentum"] for g in groups])).add_(decayed)
            values.sub_(buffer * each([g["lr"] for g in groups]))
            return
        first, second = (segment.moments[name] for name in MOMENTS["adamw"])
        betas = [g["betas"] for g in groups]
        values.mul_(each([1 - g["lr"] * g["weight_decay"] for g in groups]))
        first.mul_(each([beta for beta, _ in betas])).add_(gradients * each([1 - beta for beta, _ in betas]))
        second.mul_(each([beta for _, beta in betas])).add_(gradients.square() * each([1 - beta for _, beta in betas]))
        roots = [math.sqrt(1 - beta**n) for (_, beta), n in zip(betas, counts, strict=True)]
        rates = [g["lr"] / (1 - beta**n) for g, (beta, _), n in zip(groups, betas, counts, strict=True)]
        denominator = second.sqrt().div_(each(roots)).add_(each([g["eps"] for g in groups]))
        values.sub_((first / denominator).mul_(each(rates)))

    def _lay_out(self) -> list[_Segment]:
        """A segment for each embedding, whose lookup needs a contiguous table, and for each group of the optimizers."""
        tables = {f"{name}.weight" for name, m in self.models[0].named_modules() if isinstance(m, nn.Embedding)}
        names: dict[tuple[object, ...], list[str]] = {}
        for name in self._parameters[0]:
            places = tuple(id(own[name]) for own in self._groups)
            names.setdefault((*places, name if name in tables else ""), []).append(name)
        device = next(iter(self._parameters[0].values())).device
        return [
            _Segment(own, [self._parameters[0][name].shape for name in own], len(self.engines), device)
            for own in names.values()
        ]

    def _move_in(self, member: int) -> Tensor:
        """Copy a member's weights and state here and let its model and optimizer view them; returns its step count."""
        optimizer = self.engines[member].optimizer
        count = torch.zeros(())
        for segment in self._segments:
            for moment in MOMENTS[self.kind]:
                segment.moments.setdefault(moment, torch.zeros_like(segment.values))
            values = segment.views(segment.values)
            moments = {moment: segment.views(tensor) for moment, tensor in segment.moments.items()}
            for name in segment.names:
                parameter = self._parameters[member][name]
                state = optimizer.state.get(parameter, {})
                values[name][member].copy_(parameter.data)
                parameter.data = values[name][member]
                for moment, views in moments.items():
                    if isinstance(state.get(moment), Tensor):
                        views[name][member].copy_(state[moment])
                if "step" in state:
                    count = state["step"].detach().clone().cpu()
                optimizer.state[parameter] = {moment: views[name][member] for moment, views in moments.items()}
                if self.kind == "adamw":
                    optimizer.state[parameter]["step"] = count
        for state in optimizer.state.values():
            if "step" in state:
                state["step"] = count  # one tensor for all parameters, as they count the same steps
        return count

    @staticmethod
    def _group_of_each(engine: Engine, own: dict[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
        """The optimizer's group of each parameter, by name; its rates are set before each step."""
        by_id = {id(p): group for group in engine.optimizer.param_groups for p in group["params"]}
        return {name: by_id[id(parameter)] for name, parameter in own.items()}

"""Adversarial training on the word embeddings: FGSM (Goodfellow et al. 2014), FGM (Miyato et al. 2017), PGD (Madry
et al. 2018).

    plain pass ──▶ gradient g at the embeddings' output ──▶ perturbation r(g) ──▶ pass on embeddings + r
        └── gradients of the weights, of both passes, are added up ──┘

The perturbation is added to what the embedding module puts out, by a forward hook: its weights are never touched,
and may be sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from dtrain.models import embedding_of
from dtrain.recipe.training import AdversarialSpec


class Adversary:
    """Trains a model on loss(x) + weight · loss(x + r), where r makes the loss worse and is small.

    With g the gradient of the loss at a row's embedded tokens [L, E], norms over all of a row's real tokens
    together, and ε its `epsilon`:

        fgsm: r = ε · sign(g)
        fgm:  r = ε · g / ‖g‖₂
        pgd:  r ← r + step_size · g / ‖g‖₂, cut back to ‖r‖₂ ≤ ε, `steps` times from r = 0, g taken anew at each r

    r depends on the direction of g alone, so loss scaling and the weight of a row in a sum change nothing. A row whose
    g is zero or not finite keeps its r as it is. In eval mode nothing is perturbed.

    Args:
        spec: the recipe's `adversarial` section.
        model: called in `forward` with `attention_mask=` [B, L] and an embedding of ids [B, L]; wrapped by DDP or not.
    """

    def __init__(self, spec: AdversarialSpec, model: nn.Module) -> None:
        self.spec = spec
        self.model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self._active = False
        self._delta: Tensor | None = None  # of the pass under way; a leaf, so that it has a gradient
        self._start: Tensor | None = None  # what the pass begins from; None for zeros
        self._mask: Tensor | None = None
        self._hooks = [
            self.model.register_forward_pre_hook(self._see_mask, with_kwargs=True),
            embedding_of(self.model).register_forward_hook(self._perturb),
        ]

    def micro_step(
        self,
        forward: Callable[[], Tensor],
        backward: Callable[[Tensor], None],
        synchronise: Callable[[bool], AbstractContextManager[Any]],
    ) -> Tensor:
        """Add the gradients of one micro-batch, both passes, to those of the weights.

        PGD takes the gradients between its first and last pass with `autograd.grad` for the perturbation alone, so
        the weights' gradients see two passes whatever `steps` is. That holds for plain models, DDP, FSDP2 and ZeRO-3;
        at ZeRO-1 and 2, DeepSpeed 0.19.8 takes such a gradient for a backward pass of its own and fails with an
        IndexError. FGM and FGSM use `backward` alone.

        Args:
            forward: the loss of the micro-batch, as `backward` wants it; called once a pass.
            backward: adds the gradients of a loss, scaled as it likes.
            synchronise: the region in which gradients cross ranks with the backward pass, or with False do not. It
                is entered with True once, around the last pass.

        Returns:
            The loss of the plain pass, detached.
        """
        if not self.model.training:
            with synchronise(True):
                plain = forward()
                backward(plain)
            return plain.detach()
        self._active = True
        try:
            with synchronise(False):
                plain = self._pass(forward, None)
                # Its gradient is the factor that `backward` puts on a loss. Later passes that go around `backward`
                # need it, or they would underflow in fp16.
                factor = torch.zeros_like(plain, requires_grad=True)
                backward(plain + factor)
            assert self._delta is not None and self._delta.grad is not None and factor.grad is not None
            start = self._moved(torch.zeros_like(self._delta), self._delta.grad)
            for _ in range(1, self.spec.steps if self.spec.type == "pgd" else 1):
                with synchronise(False):
                    loss = self._pass(forward, start)
                    (gradient,) = torch.autograd.grad(loss * factor.grad, self._delta)
                start = self._moved(start, gradient)
            with synchronise(True):
                backward(self.spec.weight * self._pass(forward, start))
        finally:
            self._active = False
            self._delta = self._start = self._mask = None
        return plain.detach()

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _pass(self, forward: Callable[[], Tensor], start: Tensor | None) -> Tensor:
        self._delta, self._start = None, start
        loss = forward()
        if self._delta is None:
            raise RuntimeError("the model did not call its word embedding")
        return loss

    def _see_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._active:
            self._mask = kwargs["attention_mask"]

    def _perturb(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not self._active:
            return output
        if self._delta is not None:
            raise RuntimeError("the model called its word embedding twice in a pass")
        start = torch.zeros_like(output) if self._start is None else self._start
        self._delta = start.detach().requires_grad_()
        return output + self._delta

    def _moved(self, start: Tensor, gradient: Tensor) -> Tensor:
        """The next perturbation [B, L, E], from the one at which `gradient` was taken."""
        assert self._mask is not None
        # A model may have added padding to texts that are too short for it.
        real = functional.pad(self._mask.bool(), (0, gradient.shape[1] - self._mask.shape[1]))
        gradient = gradient.float().masked_fill(~real[:, :, None], 0.0)
        # By the largest entry first: squares of scaled or tiny gradients leave the range of float32.
        largest = gradient.abs().amax((1, 2), keepdim=True)
        usable = largest.isfinite() & (largest > 0)
        gradient = torch.where(usable, gradient / largest, 0.0)
        if self.spec.type == "fgsm":
            moved = self.spec.epsilon * gradient.sign()
        elif self.spec.type == "fgm":
            moved = self.spec.epsilon * _unit(gradient)
        else:
            moved = start.float() + self.spec.step_size * _unit(gradient)
            moved = moved * (self.spec.epsilon / _norm(moved)).clamp(max=1.0)
        return moved.to(start.dtype)


def _norm(rows: Tensor) -> Tensor:
    """[B, L, E] -> [B, 1, 1]; 1 for a row of zeros."""
    norm = rows.square().sum((1, 2), keepdim=True).sqrt()
    return torch.where(norm > 0, norm, 1.0)


def _unit(rows: Tensor) -> Tensor:
    return rows / _norm(rows)

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
from dtrain.recipe.adversarial import AdversarialSpec


class Adversary:
    """Trains a model on loss(x) + weight · loss(x + r), where r makes the loss worse and is small.

    With x a row's embedded tokens [L, E], g the gradient of the loss at them, norms over all of a row's real tokens
    together (n of them), and ε the spec's `epsilon`, `norm: relative` perturbs by

        fgsm: r = ε · ‖x‖₂ / √(n·E) · sign(g)
        fgm:  r = ε · ‖x‖₂ · g / ‖g‖₂
        pgd:  r ← r + step_size · ‖x‖₂ · g / ‖g‖₂, cut back to ‖r‖₂ ≤ ε · ‖x‖₂, `steps` times from r = 0, g taken anew
              at each r

    so that ‖r‖₂ ≤ ε · ‖x‖₂ whatever the scale of the embeddings and the length of the row. `norm: absolute` has 1 in
    place of ‖x‖₂ and of ‖x‖₂ / √(n·E): the papers' form, where embeddings have a known scale. Word embeddings of
    BERT-base (a token's norm is about 1.4) moved by the usual ε = 1 are moved by a tenth at 50 tokens, which is the
    default; beside embeddings that begin at a standard deviation of 0.02, that ε is as large as the row.

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
        self._delta: Tensor | None = None  # of the current pass; a leaf, so that it has a gradient
        self._start: Tensor | None = None  # the perturbation that the pass begins with; None for zeros
        self._mask: Tensor | None = None
        self._size: Tensor | None = None  # ‖x‖₂ of each row [B, 1, 1]
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
            self._delta = self._start = self._mask = self._size = None
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
        if self._size is None:
            self._size = _norm(self._real_part(output.detach()))
        start = torch.zeros_like(output) if self._start is None else self._start
        self._delta = start.detach().requires_grad_()
        return output + self._delta

    def _real_part(self, embedded: Tensor) -> Tensor:
        """`embedded` [B, L, E] in float32, with zeros at padded tokens."""
        return embedded.float().masked_fill(~self._real(embedded)[:, :, None], 0.0)

    def _real(self, embedded: Tensor) -> Tensor:
        """bool [B, L]: which tokens are not padding."""
        assert self._mask is not None
        # A model may have added padding to texts that are too short for it.
        return functional.pad(self._mask.bool(), (0, embedded.shape[1] - self._mask.shape[1]))

    def _moved(self, start: Tensor, gradient: Tensor) -> Tensor:
        """The next perturbation [B, L, E], from the one at which `gradient` was taken."""
        gradient = self._real_part(gradient)
        # By the largest entry first: squares of scaled or tiny gradients leave the range of float32.
        largest = gradient.abs().amax((1, 2), keepdim=True)
        usable = largest.isfinite() & (largest > 0)
        gradient = torch.where(usable, gradient / largest, 0.0)
        unit: Tensor | float = 1.0
        if self.spec.norm == "relative":
            assert self._size is not None
            unit = self._size
            if self.spec.type == "fgsm":
                entries = self._real(gradient).sum(1)[:, None, None] * gradient.shape[2]
                unit = unit / entries.clamp(min=1).sqrt()
        if self.spec.type == "fgsm":
            moved = self.spec.epsilon * unit * gradient.sign()
        elif self.spec.type == "fgm":
            moved = self.spec.epsilon * unit * _unit(gradient)
        else:
            moved = start.float() + self.spec.step_size * unit * _unit(gradient)
            moved = moved * (self.spec.epsilon * unit / _nonzero(_norm(moved))).clamp(max=1.0)
        return moved.to(start.dtype)


def _norm(rows: Tensor) -> Tensor:
    """[B, L, E] -> [B, 1, 1]."""
    return rows.square().sum((1, 2), keepdim=True).sqrt()


def _nonzero(norm: Tensor) -> Tensor:
    """1 for a row of zeros, to divide by."""
    return torch.where(norm > 0, norm, 1.0)


def _unit(rows: Tensor) -> Tensor:
    return rows / _nonzero(_norm(rows))

"""The noise that a token of a text tolerates: the entropy of Cheng et al. (CVPR 2020) and Guan et al. (ICML 2019).

Let x be the word embeddings of a text's N tokens, f its feature vector before the classifier, V the variance of f over
texts, and s_i the standard deviation of the noise on token i. The problem

    maximise  1/N sum_i log s_i   subject to   E |f(x + s e) - f(x)|^2 = share * V,   e ~ N(0, 1)

is solved by gradient descent in log s on its Lagrangian, E |f(x + s e) - f(x)|^2 / (2 share V) - 1/N sum_i log s_i. The
multiplier is the one with which the constraint holds exactly wherever f is linear in the noise:

    f(x) = sum_i W_i x_i + c     s_i^2 = share V / (N |W_i|^2)     (|W_i| is the Frobenius norm)

The entropy of a token is H_i = log s_i + log(2 pi e) / 2, in nats per dimension. The lower it is, the more the model
uses the token.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtrain.models import embedding_of

PROBES = 8  # random directions of the feature whose gradients estimate the sensitivity to each token, for the start
RATE = 0.1  # learning rate of log s, decayed linearly to 0
LEAST, MOST = 1e-3, 10.0  # bounds of s in standard deviations of a text's embeddings; at 10, little of them is left
ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a standard normal variable, in nats

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class NoiseSearch:
    """Settings of the optimisation.

    Attributes:
        share: the expected squared change of the feature vector, as a share of its variance over texts.
        steps: number of gradient steps.
        samples: samples of noise in each step.
    """

    share: float
    steps: int
    samples: int


class NoisyModel:
    """A model to whose word embeddings noise can be added; several threads may call it at once.

    The model is put into eval mode and its parameters are frozen; both remain after `close`.

    Args:
        model: the model.
        feature: a function that picks the vector before the classifier, [B, F], from the model's output.
        options: further arguments of each call.
    """

    def __init__(
        self, model: nn.Module, feature: Callable[[Any], Tensor], options: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.feature, self.options = feature, dict(options or {})
        self._embedding = embedding_of(model)
        self._here = threading.local()
        self._hook = self._embedding.register_forward_hook(self._move)

    def embedded(self, inputs: Inputs) -> Tensor:
        """The word embeddings, float32 [B, L, E]."""
        found: Tensor = self._embedding(inputs["input_ids"])
        return found.float()

    def features(self, inputs: Inputs, noise: Tensor | None = None) -> Tensor:
        """The feature vectors, float32 [B, F]; `noise` [B, L, E] is added to the word embeddings.

        Raises:
            ValueError: the model did not call its word embedding exactly once.
        """
        self._here.noise, self._here.times = noise, 0
        try:
            # cuDNN's recurrent layers have no backward pass in eval mode. The flag is global, not one of a thread.
            on_gpu = inputs["input_ids"].device.type == "cuda"
            with torch.backends.cudnn.flags(enabled=False) if on_gpu else contextlib.nullcontext():
                found = self.feature(self.model(**inputs, **self.options)).float()
        finally:
            self._here.noise = None
        if noise is not None and self._here.times != 1:
            raise ValueError(f"{type(self.model).__name__}: called its word embedding {self._here.times} times")
        return found

    def close(self) -> None:
        """Remove the hook from the model."""
        self._hook.remove()

    def _move(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        noise: Tensor | None = getattr(self._here, "noise", None)
        if noise is None:
            return output
        self._here.times += 1
        # The model may have padded texts that are too short for it.
        return output + functional.pad(noise, (0, 0, 0, output.shape[1] - noise.shape[1]))


def entropies(model: NoisyModel, inputs: Inputs, variance: float, search: NoiseSearch, seeds: Sequence[int]) -> Tensor:
    """The entropy of each token in nats, float32 [B, L]; the values at padded positions are meaningless.

    The result for a row depends neither on other rows nor on its padding.

    Args:
        inputs: input_ids and attention_mask, int64 [B, L], and other inputs of the model.
        variance: the variance of the feature vector over texts, summed over its components.
        search: the settings of the optimisation.
        seeds: for each row, the seed of its noise.
    """
    real = inputs["attention_mask"].bool()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    lengths = real.sum(1)
    with torch.no_grad():
        embedded, target = model.embedded(inputs), model.features(inputs)
    deviation = _deviation(embedded, real)
    least, most = (LEAST * deviation).log()[:, None], (MOST * deviation).log()[:, None]
    allowed = search.share * variance
    sensitivity = _sensitivity(model, inputs, embedded, target, generators)
    log_sigma = (0.5 * (allowed / (lengths[:, None] * sensitivity)).log()).nan_to_num(posinf=math.inf)
    log_sigma = log_sigma.clamp(least, most).requires_grad_()
    optimizer = torch.optim.Adam([log_sigma], lr=RATE)
    mean, kept = torch.zeros_like(log_sigma), 0
    repeated = {name: tensor.repeat(search.samples, 1) for name, tensor in inputs.items()}
    for step in range(search.steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / search.steps)
        draws = _draw(generators, search.samples, lengths.tolist(), embedded)
        moved = model.features(repeated, (log_sigma.exp()[None, :, :, None] * draws).flatten(0, 1))
        distance = (moved.unflatten(0, (search.samples, -1)) - target).square().sum(-1).mean(0)
        loss = distance / (2 * allowed) - (log_sigma * real).sum(1) / lengths
        (log_sigma.grad,) = torch.autograd.grad(loss.sum(), log_sigma)
        optimizer.step()
        with torch.no_grad():
            log_sigma.clamp_(least, most)
            if 2 * step >= search.steps:  # average the second half of the steps, since each has new noise
                mean += log_sigma
                kept += 1
    return (mean / kept if kept else log_sigma).detach() + ENTROPY


def _sensitivity(
    model: NoisyModel, inputs: Inputs, embedded: Tensor, target: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """An estimate of |df / dx_i|^2 for each token, [B, L]: the mean of |d(v f) / dx_i|^2 over random directions v."""
    still = torch.zeros_like(embedded, requires_grad=True)
    features = model.features(inputs, still)
    total = torch.zeros_like(embedded[..., 0])
    for probe in range(PROBES):
        drawn = torch.stack([torch.randn(target.shape[1], generator=generator) for generator in generators])
        again = probe < PROBES - 1
        (gradient,) = torch.autograd.grad(features, still, drawn.to(features), retain_graph=again)
        total += gradient.square().sum(-1)
    return total / PROBES


def _deviation(embedded: Tensor, real: Tensor) -> Tensor:
    """The standard deviation of all components of a text's embeddings, [B], and at least 1e-6."""
    count = real.sum(1) * embedded.shape[-1]
    mean = (embedded * real[..., None]).sum((1, 2)) / count
    squares = ((embedded - mean[:, None, None]) * real[..., None]).square().sum((1, 2))
    return (squares / count).sqrt().clamp(min=1e-6)


def _draw(generators: Sequence[torch.Generator], samples: int, lengths: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise [samples, B, L, E], from each row's own generator; 0 at padded positions."""
    width, size = like.shape[1:]
    rows = [
        functional.pad(torch.randn(samples, length, size, generator=generator), (0, 0, 0, width - length))
        for generator, length in zip(generators, lengths, strict=True)
    ]
    return torch.stack(rows, 1).to(like)

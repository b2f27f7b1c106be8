"""Trials on fake tensors: parameters and activations of a model, extrapolated from small models of the same width.

A trial computes one micro-batch forward and backward with tensors that have shapes but no values. Parameters and
activations grow by the same amount with each layer, and activations with each row. So those of 24 layers and of any
micro-batch follow, by straight lines, from trials of 2 and 4 layers with 32 and 64 rows.

Memory peaks at the end of the forward pass (when 16-bit copies of weights are still there) or in the backward pass
(when a layer is computed again). Each of the two has lines of its own, and the larger peak counts.

Fake tensors are on the CPU, so that no CUDA is needed. Where a GPU computes in another way, that way is put in place:
NEZHA's attention by doubled heads, masks whose values are not read, attention that keeps no probabilities.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers import AutoConfig, AutoModel

import dtrain.models.nezha  # noqa: F401  registers NEZHA with the Auto classes
from dtrain.models.nezha import attention, modeling
from dtrain.models.transformer import without_mask_checks
from dtrain.planning.tracker import LiveBytes, held_by

LAYERS = (2, 4)
ROWS = (32, 64)
CLASSES = 15
Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Activations:
    """Bytes that activations and temporary results take at their peak.

    Attributes:
        lines: for the peak of each pass (forward, backward), bytes per row, and bytes that do not depend on the rows.
        how: how these figures were found: 'tracked' or 'formula'.
    """

    lines: tuple[tuple[float, float], ...]
    how: str

    def of(self, rows: int) -> float:
        """Bytes for a micro-batch of this many rows."""
        return max(a_row * rows + fixed for a_row, fixed in self.lines)

    def most_rows(self, free: float) -> int:
        """Rows whose activations fit into `free` bytes."""
        return max(0, min(int((free - fixed) / max(a_row, 1.0)) for a_row, fixed in self.lines))


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on.

    Attributes:
        parameters: numbers in all parameter tensors.
        tensors: how many parameter tensors there are.
        layers: how many layers there are.
        block: numbers in the parameters of one layer; the others, embeddings above all, belong to no layer.
        largest: numbers in the largest parameter tensor.
    """

    parameters: int
    tensors: int
    layers: int
    block: int
    largest: int


class _WithHead(nn.Module):
    """A transformer with a classifier on its first token or, in pre-training, a head on `predicted` tokens a row."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        values = dict(key)
        self.predicted = int(values.pop("predicted"))
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.encoder = AutoModel.from_config(config, attn_implementation="sdpa")
        width = config.hidden_size
        self.transform = nn.Sequential()
        self.head = nn.Linear(width, config.vocab_size if self.predicted else CLASSES)
        if self.predicted:
            self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
            self.head.weight = self.encoder.get_input_embeddings().weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(self.transform(states[:, : self.predicted or 1].flatten(0, 1)))


def transformer_shape(config: dict[str, Any], predicted: int = 0) -> Shape:
    """The sizes of a transformer with its head (see `_WithHead`), extrapolated from two small ones, which is exact."""
    small, more = (_counts(_key(config, layers, predicted)) for layers in LAYERS)
    layers = int(config["num_hidden_layers"])
    each = [(after - before) / (LAYERS[1] - LAYERS[0]) for before, after in zip(small, more, strict=True)]
    parameters, tensors = (round(first + more * (layers - LAYERS[0])) for first, more in zip(small, each, strict=True))
    return Shape(parameters, tensors, layers, round(each[0]), config["vocab_size"] * config["hidden_size"])


def transformer_activations(
    config: dict[str, Any], length: int, precision: str, checkpointing: bool, predicted: int = 0
) -> Activations:
    """The activations of a transformer of any number of layers over rows of `length` tokens; see `_WithHead`."""
    few, more = (
        lines_through(
            *(_peaks(_key(config, layers, predicted), rows, length, precision, checkpointing) for rows in ROWS)
        )
        for layers in LAYERS
    )
    steps = (int(config["num_hidden_layers"]) - LAYERS[0]) / (LAYERS[1] - LAYERS[0])
    longer = ((a + (b - a) * steps for a, b in zip(*lines, strict=True)) for lines in zip(few, more, strict=True))
    return Activations(tuple((a_row, fixed) for a_row, fixed in longer), "tracked")


def module_activations(make: Callable[[], nn.Module], length: int, precision: str) -> Activations:
    """The activations of any model of the package that can be run on fake tensors."""

    def ask(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits

    return Activations(lines_through(*(step_peaks(make, rows, length, precision, ask) for rows in ROWS)), "tracked")


def lines_through(low: tuple[int, int], high: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """For each pass, slope and intercept of the line through the bytes that trials of `ROWS` rows took."""
    slopes = [(b - a) / (ROWS[1] - ROWS[0]) for a, b in zip(low, high, strict=True)]
    return tuple((slope, a - slope * ROWS[0]) for slope, a in zip(slopes, low, strict=True))


def _key(config: dict[str, Any], layers: int, predicted: int = 0) -> Key:
    """The configuration with this many layers, as a cache key; without dropout of attention: see `_as_on_a_gpu`."""
    changed = {**config, "num_hidden_layers": layers, "attention_probs_dropout_prob": 0.0, "use_cache": False}
    changed["predicted"] = predicted
    return tuple(sorted((key, value) for key, value in changed.items() if isinstance(value, (str, int, float))))


@functools.cache
def _counts(key: Key) -> tuple[int, int]:
    with FakeTensorMode():
        model = _WithHead(key)
        return sum(p.numel() for p in model.parameters()), len(list(model.parameters()))


@functools.cache
def _peaks(key: Key, rows: int, length: int, precision: str, checkpointing: bool) -> tuple[int, int]:
    def make() -> nn.Module:
        model = _WithHead(key)
        if checkpointing:
            model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        return without_mask_checks(model, torch.device("cuda"))

    return step_peaks(make, rows, length, precision, lambda model, ids, mask: model(ids, mask))


def step_peaks(
    make: Callable[[], nn.Module],
    rows: int,
    length: int,
    precision: str,
    ask: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> tuple[int, int]:
    """Bytes beyond weights and gradients at the peaks of the forward and the backward pass of one micro-batch.

    It is one after the first of a step, so that gradients are there from the beginning.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _as_on_a_gpu(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make().train()
        for parameter in model.parameters():  # gradients of earlier micro-batches of the step
            parameter.grad = torch.empty_like(parameter)
        ids = torch.zeros(rows, length, dtype=torch.long)
        mask = torch.ones_like(ids)
        tracker = LiveBytes()
        tracker.hold([*held_by(model), ids, mask])
        with tracker:
            dtype = torch.bfloat16 if precision != "fp32" else torch.float32
            with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
                answers = ask(model, ids, mask)
            labels = torch.zeros(len(answers), dtype=torch.long)
            loss = functional.cross_entropy(answers.float(), labels, reduction="sum")
            forward = tracker.peak.passing
            tracker.restart()
            loss.backward()
        return forward, tracker.peak.passing


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Compute as a GPU would. With dropout, a CPU's attention keeps probabilities, a GPU's does not; see `_key`."""
    turned, visible = attention.turned_attention, modeling._visible
    attention.turned_attention = attention.doubled_head_attention
    modeling._visible = _not_looked_at
    try:
        yield
    finally:
        attention.turned_attention, modeling._visible = turned, visible


def _not_looked_at(attention_mask: Tensor | None, embeddings: Tensor) -> Tensor | None:
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()

"""Which tensors of a teacher's output become which columns of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from dtrain.errors import InputError
from dtrain.knowledge.format import Layout
from dtrain.knowledge.kinds import find_kind
from dtrain.knowledge.top_k import largest


def model_options(model: nn.Module, outputs: Iterable[str]) -> dict[str, Any]:
    """Arguments that make a model return these kinds of output."""
    return {key: value for name in outputs for key, value in find_kind(name).options(model).items()}


def pick(name: str, output: Any) -> Tensor:
    """One kind of a model's output, float32 [B, width]; [B, N, T] for a kind with a vector for each character.

    For sequences it is [B, k, L] of token numbers, which float32 holds exactly.

    Raises:
        InputError: the model has no such output.
    """
    found: Tensor | None = find_kind(name).pick(output)
    if found is None:
        raise InputError(f"knowledge.outputs: this teacher has no {name}")
    return found.float()


def collector(layout: Layout) -> Callable[[Any], tuple[Tensor, ...]]:
    """A function of a model's output of a batch that gives a tensor for each of the layout's columns, in order.

    If a column is ragged, the number of characters that the model saw in each row, int64 [B], comes last.
    """

    def collect(output: Any) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []
        for name in layout.output_names:
            values, scores = pick(name, output), find_kind(name).scores
            if scores is not None:
                kept += [values.flatten(1), scores(output).float()]
                continue
            k = layout.outputs[name].top_k
            kept += [values] if k is None else largest(values, k)
        if layout.ragged:
            kept.append(output.mask.sum(1))
        return tuple(kept)

    return collect

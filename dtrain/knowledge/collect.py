"""Which tensors of a teacher's output become which columns of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from dtrain.errors import InputError
from dtrain.knowledge.format import Layout
from dtrain.knowledge.top_k import largest


def model_options(model: nn.Module, outputs: Iterable[str]) -> dict[str, Any]:
    """Arguments that make a model return these outputs."""
    options = {}
    if "marginals" in outputs:
        options["marginals"] = True
    if "features" in outputs:
        from transformers import PreTrainedModel  # takes longer to import than all else, and few students need it

        if isinstance(model, PreTrainedModel):
            options["output_hidden_states"] = True
    return options


def pick(name: str, output: Any) -> Tensor:
    """One output of a model: float32 [B, width], or [B, N, T] for emissions and marginals.

    `features` are the model's own, or of a transformers classifier the last layer's state of the first token, which
    the pooler's tanh has not flattened yet. Marginals are probabilities.

    Raises:
        InputError: the model has no such output.
    """
    found: Tensor | None = output.logits
    tags = getattr(output, "mask", None) is not None
    if name == "marginals":
        found = output.marginals.exp() if tags else None
    elif name == "features":
        found = getattr(output, "features", None)
        if found is None and getattr(output, "hidden_states", None):
            found = output.hidden_states[-1][:, 0]
    elif (name == "emissions") != tags:
        found = None
    if found is None:
        raise InputError(f"knowledge.outputs: this teacher has no {name}")
    return found.float()


def collector(layout: Layout) -> Callable[[Any], tuple[Tensor, ...]]:
    """What to keep of a batch: a tensor for each of the layout's columns, in order.

    Where a column is ragged, int64 [B], the number of characters that the model saw in each row, comes last.
    """

    def collect(output: Any) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []
        for name in layout.output_names:
            values = pick(name, output)
            k = layout.outputs[name].top_k
            kept += [values] if k is None else largest(values, k)
        if layout.ragged:
            kept.append(output.mask.sum(1))
        return tuple(kept)

    return collect

"""What an exported model computes: each architecture names one of these classes (`Architecture.graph`).

A graph takes `input_ids` and `attention_mask`, int64 [B, L], and `token_type_ids` where the model reads them, any B and L.
To add one from outside the package, write a subclass of `Graph`; see `Logits`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One graph of an export.

    Attributes:
        module: called with its inputs as positional arguments, gives a tuple.
        inputs: an example of each by name; the first two dimensions of all are free.
        outputs: the names of its outputs.
    """

    module: nn.Module
    inputs: Inputs
    outputs: tuple[str, ...]


class Graph(ABC):
    """What a model is exported as.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    @abstractmethod
    def parts(self, example: Inputs) -> list[Part]:
        """The graphs, in the order in which they are run; `example` are the inputs of the first."""

    def settings(self) -> dict[str, Any]:
        """What `predict.py` has to know about the graph, as JSON values."""
        return {}


class _Call(nn.Module):
    """The model with positional inputs, which exporters then name."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.model(**dict(zip(self.names, inputs, strict=True))).logits.float(),)


class Logits(Graph):
    """The model's `logits`: of a classifier [B, C], of a tagger without a CRF [B, N, T]."""

    def parts(self, example: Inputs) -> list[Part]:
        return [Part(_Call(self.model, tuple(example)), example, ("logits",))]


class Emissions(Logits):
    """A tagger's emissions [B, N, T]. The search for the best tags is not in the graph but in numpy.

    In the graph it would be a loop over characters, which ONNX runtimes do more slowly than numpy on [T, T]; and outside of
    it, the same numbers also give each entity its probability.
    """

    def settings(self) -> dict[str, Any]:
        crf = getattr(self.model, "crf", None)  # also None where a model of several tasks classifies
        if crf is None:
            return {"crf": None}
        start, end, moves = crf.scores()
        return {"crf": {"start": start.tolist(), "end": end.tolist(), "moves": moves.tolist()}}


class _Segment(nn.Module):
    """Layers of a model with several exits, up to an exit and its classifier."""

    def __init__(self, model: Any, begin: int, exit: int, last: bool) -> None:
        super().__init__()
        self.embeddings = model.encoder.embeddings if begin == 0 else None
        self.layers = nn.ModuleList(model.encoder.encoder.layer[begin : model.exits[exit]])
        self.classifier = model.classifiers[exit]
        self.last = last

    def forward(self, first: Tensor, mask: Tensor, types: Tensor | None = None) -> tuple[Tensor, ...]:
        states = first if self.embeddings is None else self.embeddings(input_ids=first, token_type_ids=types)
        visible = mask[:, None, None, :].bool()
        for layer in self.layers:
            states = layer(states, visible)
        logits = self.classifier(states[:, 0]).float()
        return (logits,) if self.last else (logits, states)


class Exits(Graph):
    """One graph from each exit to the next: `predict.py` runs them until every row has left.

    A single graph with the logits of all exits would compute every layer for every row, and leaving early would save nothing.
    Without a confidence no row leaves early, and there is one graph.
    """

    def parts(self, example: Inputs) -> list[Part]:
        model = self.model
        if model.confidence is None:
            return [Part(_Call(model, tuple(example)), example, ("logits",))]
        found: list[Part] = []
        begin, inputs = 0, dict(example)
        for exit, layer in enumerate(model.exits):
            last = exit == len(model.exits) - 1
            segment = _Segment(model, begin, exit, last)
            found.append(Part(segment, inputs, ("logits",) if last else ("logits", "next_states")))
            if not last:
                with torch.no_grad():
                    states = segment(*inputs.values())[1]
                begin, inputs = layer, {"states": states, "attention_mask": example["attention_mask"]}
        return found

    def settings(self) -> dict[str, Any]:
        return {} if self.model.confidence is None else {"confidence": self.model.confidence}

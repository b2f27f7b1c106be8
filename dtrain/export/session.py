"""Exported graphs as a module, so that they are scored and timed as any other model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dtrain.runfolder import read_json

Graph = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]


class GraphOutput(NamedTuple):
    """As of the model itself: `logits`, and of a tagger `mask`, bool [B, N]."""

    logits: Tensor
    mask: Tensor | None


class ExportedModel(nn.Module):
    """The graphs of an export folder on the CPU, called as the model that they were made from.

    A model of several graphs is run from one to the next; rows leave where `predict.py` lets them leave.

    Args:
        folder: of the export.
        model: what it was made from: its labels, and of a tagger the search for the best tags.
        threads: CPU cores of one call.
    """

    def __init__(self, folder: Path, model: nn.Module, threads: int = 1) -> None:
        super().__init__()
        self.config = model.config
        self.settings = read_json(folder / "settings.json")
        self._open = script_of(folder).open_graph
        self.graphs: list[Graph] = [self._open(folder / name, threads) for name in self.settings["graphs"]]
        self._model = [model]  # not a submodule: its weights are not those of the graphs
        for name in ("decode", "nll", "log_marginals"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> GraphOutput:
        """int64 [B, L] each -> logits [B, C], or of a tagger [B, N, T] with their mask."""
        ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy()
        feeds = {"input_ids": ids, "attention_mask": mask}
        if token_type_ids is not None and self.settings["types"] is True:
            feeds["token_type_ids"] = token_type_ids.cpu().numpy()
        left, found = np.arange(len(ids)), None
        for number, graph in enumerate(self.graphs, 1):
            logits, *states = graph(feeds)
            found = np.empty((len(ids), *logits.shape[1:]), np.float32) if found is None else found
            found[left] = logits
            if number == len(self.graphs):
                break
            powers = np.exp(logits - logits.max(1, keepdims=True))
            stays = (powers / powers.sum(1, keepdims=True)).max(1) < np.float32(self.settings["confidence"])
            left, mask = left[stays], mask[stays]
            if not len(left):
                break
            feeds = {"states": states[0][stays], "attention_mask": mask}
        specials = attention_mask.shape[1] - (0 if found is None or found.ndim < 3 else found.shape[1])
        shown = attention_mask[:, specials:].bool() if found is not None and found.ndim == 3 else None
        return GraphOutput(torch.from_numpy(found), shown)


def script_of(folder: Path) -> Any:
    """The module `predict.py` of an export folder."""
    loader = importlib.machinery.SourceFileLoader(f"predict_{abs(hash(folder))}", str(folder / "predict.py"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module

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
    """The output of graphs, as of the model itself: `logits`, and for a tagger `mask`, bool [B, N]."""

    logits: Tensor
    mask: Tensor | None


class OpenExport(nn.Module):
    """The graphs of an export folder on the CPU, called as the model that they were made from.

    Args:
        folder: the export's folder.
        model: the model that it was made from.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        super().__init__()
        self.config = model.config
        self.settings = read_json(folder / "settings.json")


def open_export(folder: Path, model: nn.Module, threads: int = 1) -> OpenExport:
    """Open an export: an `ExportedWriter` for a model that writes texts, else an `ExportedModel`.

    Args:
        folder, model: as for `OpenExport`.
        threads: CPU threads of one call.
    """
    kind = ExportedWriter if "writes" in read_json(folder / "settings.json") else ExportedModel
    return kind(folder, model, threads)


class ExportedModel(OpenExport):
    """An exported classifier or tagger. Several graphs run one after another; rows leave as `predict.py` lets them leave.

    Args:
        folder: the export's folder.
        model: the model that it was made from, for its labels and a tagger's search for the best tags.
        threads: CPU threads of one call.
    """

    def __init__(self, folder: Path, model: nn.Module, threads: int = 1) -> None:
        super().__init__(folder, model)
        self._open = script_of(folder).open_graph
        self.graphs: list[Graph] = [self._open(folder / name, threads) for name in self.settings["graphs"]]
        self._model = [model]  # not a submodule: its weights are not those of the graphs
        for name in ("decode", "nll", "log_marginals"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> GraphOutput:
        """int64 [B, L] each -> logits [B, C], or for a tagger [B, N, T] with their mask."""
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


class Sequences(NamedTuple):
    """The output of `generate`: `sequences`, int64 [B, n], which begin with the start token and are padded after the end."""

    sequences: Tensor


class ExportedWriter(OpenExport):
    """An encoder-decoder, which scores given targets token by token, and writes greedily as `predict.py` does.

    Args:
        folder: the export's folder.
        model: the model that it was made from, for how its texts end.
        threads: CPU threads of one call.
    """

    def __init__(self, folder: Path, model: nn.Module, threads: int = 1) -> None:
        super().__init__(folder, model)
        self.generation_config = model.generation_config
        self._script = script_of(folder).Model(folder, threads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, **_: bool) -> GraphOutput:
        """int64 [B, L], [B, L] and [B, T] -> logits [B, T, V]."""
        mask, given = attention_mask.cpu().numpy(), decoder_input_ids.cpu().numpy()
        (source,) = self._script.read({"input_ids": input_ids.cpu().numpy(), "attention_mask": mask})
        found, past = [], np.zeros((len(mask), 0, self.settings["width"]), np.float32)
        for place in range(1, given.shape[1] + 1):
            feeds = {"tokens": given[:, :place], "past": past, "source": source, "attention_mask": mask}
            logits, more = self._script.step(feeds)
            found.append(logits)
            past = np.hstack([past, more])
        return GraphOutput(torch.from_numpy(np.stack(found, 1)), None)

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **asked: Any) -> Sequences:
        """Write a text for each row of `input_ids`, int64 [B, L].

        Raises:
            ValueError: another decoding is asked for than the folder's own.
        """
        if (asked["num_beams"], asked["max_new_tokens"]) != (1, self.settings["max_length"]):
            raise ValueError(f"an export writes greedily, {self.settings['max_length']} tokens at most")
        written = self._script.write(input_ids.cpu().numpy(), attention_mask.cpu().numpy())
        tokens = np.full((len(written), 1 + max(map(len, written))), self.settings["pad_id"])
        tokens[:, 0] = self.settings["start"]
        for row, own in zip(tokens, written, strict=True):
            row[1 : 1 + len(own)] = own
        return Sequences(torch.from_numpy(tokens))


def script_of(folder: Path) -> Any:
    """Import `predict.py` of an export folder as a module."""
    loader = importlib.machinery.SourceFileLoader(f"predict_{abs(hash(folder))}", str(folder / "predict.py"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module

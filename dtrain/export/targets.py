"""Write graphs to files: ONNX by torch's exporter (without onnx's checker), or a program of torch.export."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.errors import InputError
from dtrain.export.graphs import Part
from dtrain.export.lstm import OnnxLSTM, PaddedLSTM

# The newest opset that onnxruntime 1.17 (2024) reads, and the oldest with all operators that are used here.
OPSET = 20
DYNAMIC = torch.export.Dim.DYNAMIC


@dataclass(frozen=True)
class Target:
    """A kind of file to export to.

    Attributes:
        suffix: the suffix of its files.
        needs: the packages that are needed to write it.
        lstm: gives the module that replaces an LSTM of a model.
        write: writes one graph to a file.
        open_graph: the source of `open_graph`, the function of `predict.py` that opens a file; None: it stays as it is.
    """

    suffix: str
    needs: tuple[str, ...]
    lstm: Callable[[nn.LSTM], nn.Module]
    write: Callable[[Part, Path], None]
    open_graph: str | None = None

    def check(self) -> None:
        """Raise InputError where a package is missing."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise InputError(f"--to: needs {', '.join(missing)}: pip install 'dtrain[export]'")

    def prepared(self, model: nn.Module) -> nn.Module:
        """A copy of a model in eval mode, in the form that this target's exporter can follow."""
        model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in list(model.modules()):
            config: Any = getattr(module, "config", None)
            if getattr(config, "model_type", None) == "nezha":
                # The plain formula holds for any length; the fast implementations choose by the example's length.
                config._attn_implementation = "eager"
            for name, child in list(module.named_children()):
                if isinstance(child, nn.LSTM):
                    setattr(module, name, self.lstm(child))
        return model


def _write_onnx(part: Part, path: Path) -> None:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=_free(part),
            verbose=False,
        )
        assert program is not None
        program.save(path)


def _write_program(part: Part, path: Path) -> None:
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            part.module, tuple(part.inputs.values()), dynamic_shapes=_free(part), strict=False
        )
        torch.export.save(program, path)


def _free(part: Part) -> Any:
    """The dynamic shapes: batch and length of every input are free."""
    one = [{0: DYNAMIC, 1: DYNAMIC} for _ in part.inputs]
    return (tuple(one),) if _takes_all(part.module) else tuple(one)


def _takes_all(module: nn.Module) -> bool:
    """Whether `forward` has one parameter, `*inputs`, as torch's exporter sees it."""
    code = type(module).forward.__code__
    return code.co_argcount == 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages of torch's exporter: dozens of lines, none of which a user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# Tokens of the example that a graph is traced with. A traced program may not hold for shorter texts, which are padded.
LEAST = 16
OPEN_PROGRAM = f"""def open_graph(path, threads):
    torch.set_num_threads(threads)
    module = torch.export.load(str(path)).module(check_guards=False)

    def run(feeds):  # padding changes nothing, and the program was made with {LEAST} tokens and more in mind
        tensors = [torch.from_numpy(array) for array in feeds.values()]
        least = 0 if "past" in feeds else {LEAST}  # a step's tokens end with the last one that is written
        room = [max(0, least - tensor.shape[1]) for tensor in tensors]
        pads = [[0, 0] * (t.dim() - 2) + [0, more] for t, more in zip(tensors, room, strict=True)]
        padded = [torch.nn.functional.pad(t, pad) for t, pad in zip(tensors, pads, strict=True)]
        # What stands a token, [B, L, ...], ends where the inputs end.
        return [f.numpy() if f.dim() < 3 else f[:, : f.shape[1] - room[0]].numpy() for f in module(*padded)]

    return run
"""

TARGETS = {
    "onnx": Target(".onnx", ("onnx", "onnxscript", "onnxruntime"), OnnxLSTM, _write_onnx),
    "torch": Target(".pt2", (), PaddedLSTM, _write_program, OPEN_PROGRAM),
}


def example_of(rows: int, tokens: int, types: bool, length: int = LEAST) -> dict[str, Tensor]:
    """Example inputs to trace a model with, int64 [rows, length] each.

    Their values do not matter; neither dimension may be 0 or 1, sizes that exporters treat specially.

    Args:
        tokens: the size of the vocabulary.
        types: whether the model reads `token_type_ids`.
    """
    ids = torch.arange(rows * length).view(rows, length) % tokens
    mask = torch.ones_like(ids)
    mask[1:, length // 2 :] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    return found | ({"token_type_ids": torch.zeros_like(ids)} if types else {})

"""The folder of an exported model: graphs, tokenizer, settings, table of normalisation, `predict.py`, card, metrics."""

from __future__ import annotations

import importlib
import inspect
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from dtrain.errors import InputError, suggest
from dtrain.export.card import card_of
from dtrain.export.graphs import Graph
from dtrain.export.quantize import quantize
from dtrain.export.targets import OPSET, TARGETS, Target, example_of
from dtrain.models import load, own
from dtrain.models.multi_task import for_task
from dtrain.predict.folder import ModelFolder, read_folder
from dtrain.recipe.models import EncoderSpec, architectures
from dtrain.runfolder import follow_umask, publish_folder, write_json
from dtrain.tasks.answers import Exported

FORMAT = 1  # of the folder; raised when its files change meaning
ROWS = 3  # of the example that a model is traced with


@dataclass(frozen=True)
class Wish:
    """Which model to export, and to what."""

    place: Path  # the model's folder
    name: str
    to: str  # a key of TARGETS
    int8: bool = False
    task: str | None = None  # for a model of several tasks, the one to export

    @property
    def folder_name(self) -> str:
        """The model's name, with its task, `torch` and `int8` where they apply."""
        task = f"-{self.task}" if self.task else ""
        return self.name + task + f"-{self.to}" * (self.to != "onnx") + "-int8" * self.int8


def check_wish(wish: Wish) -> Target:
    """The kind of file that a wish asks for.

    Raises:
        InputError: a package is missing, or options do not go together.
    """
    if wish.to not in TARGETS:
        raise InputError(f"--to: no target {wish.to!r}{suggest(wish.to, TARGETS)} (allowed: {', '.join(TARGETS)})")
    target = TARGETS[wish.to]
    if wish.int8 and wish.to != "onnx":
        raise InputError(f"--quantize: is for --to onnx (found: {wish.to})")
    target.check()
    return target


def export_model(wish: Wish, final: Path) -> tuple[nn.Module, ModelFolder]:
    """Write the export as the folder `final`; returns the model that was exported, and what its folder says.

    Raises:
        InputError: for an architecture or a kind of task that cannot be exported.
    """
    target = check_wish(wish)
    known = read_folder(wish.place, wish.task, "--task")
    model = for_task(load(wish.place), wish.task or "")
    graph = graph_of(model, wish.place)(target.prepared(model))
    told = graph.settings()
    beside = known.answers.exported(model, wish.place, known.normalize, known.max_length, known.texts)
    with publish_folder(final) as aside:
        names = _write_graphs(graph, beside, target, wish.int8, aside, _tokens(model))
        for file, text in (("tokenizer.json", beside.tokenizer), *beside.more):
            (aside / file).write_text(text, encoding="utf-8")
        write_json(aside / "normalization.json", beside.normalization)
        settings = {"format": FORMAT, "task": known.task, "graphs": names, **beside.settings, **told}
        write_json(aside / "settings.json", settings)
        (aside / "predict.py").write_text(script_of_target(beside.script, target), encoding="utf-8")
        size = sum((aside / name).stat().st_size for name in names)
        metrics = {"model": wish.name, "task": wish.task, "to": wish.to, "int8": wish.int8, "bytes": size}
        write_json(aside / "metrics.json", metrics | ({"opset": OPSET} if wish.to == "onnx" else {}))
        (aside / "README.md").write_text(
            card_of(wish.name, wish.to, wish.int8, known, settings, size), encoding="utf-8"
        )
    return model, known


def graph_of(model: nn.Module, place: Path) -> type[Graph]:
    """The class of graphs that the model's architecture names.

    Raises:
        InputError: it names none.
    """
    config: Any = model.config
    kind = str(config["model_type"] if isinstance(config, dict) else config.model_type)
    known = architectures()
    spec = known.get(kind.removeprefix(own.PREFIX))
    # A classifier of transformers that has no section of its own is exported as a BERT is.
    other = kind.startswith(own.PREFIX) or getattr(config, "is_encoder_decoder", False)
    path = spec.graph if spec is not None else None if other else EncoderSpec.graph
    if path is None:
        able = ", ".join(name for name, each in known.items() if each.graph)
        raise InputError(f"export: {place}: a {kind.removeprefix(own.PREFIX)} cannot be exported (allowed: {able})")
    home, _, name = path.partition(":")
    found: type[Graph] = getattr(importlib.import_module(home), name)
    return found


def script_of_target(module: str, target: Target) -> str:
    """The text of `predict.py` for a target."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    if target.open_graph is None:
        return text
    own_way = inspect.getsource(importlib.import_module(module).open_graph)
    text = text.replace("import onnxruntime\n", "import torch\n").replace("Needs onnxruntime", "Needs torch")
    return text.replace("needs onnxruntime", "needs torch").replace(own_way, target.open_graph)


def _write_graphs(graph: Graph, beside: Exported, target: Target, int8: bool, folder: Path, tokens: int) -> list[str]:
    names = []
    for number, part in enumerate(graph.parts(example_of(ROWS, tokens, beside.types)), 1):
        path = folder / (f"graph{'' if number == 1 else f'-{number}'}{target.suffix}")
        target.write(part, path)
        if int8:
            quantize(path)
        follow_umask(path)
        names.append(path.name)
    for extra in folder.glob("*.data"):  # weights of 2 GB and more are in a file beside their graph
        follow_umask(extra)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return names


def _tokens(model: nn.Module) -> int:
    config: Any = model.config
    encoder = config.get("encoder") if isinstance(config, dict) else None
    size = (encoder or config)["vocab_size"] if isinstance(config, dict) else config.vocab_size
    return int(size)

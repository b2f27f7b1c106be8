"""Model folders: config.json, model.safetensors, tokenizer files and a model card, written and read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dtrain.errors import InputError, suggest
from dtrain.models import own
from dtrain.quiet import quiet_transformers
from dtrain.runfolder import ASIDE, atomic_write, follow_umask, fsync_folder, write_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"


def save_model(
    model: nn.Module,
    folder: Path,
    tokenizer_path: Path | None,
    card: str,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model folder file by file, each complete under its name; `config.json` comes last.

    Other files in `folder` stay. To publish a folder as a whole, call this inside `publish_folder`.

    Args:
        model: one of the package's own or a transformers model, not wrapped.
        folder: made if absent.
        tokenizer_path: a folder with the tokenizer's files, all copied.
        card: the text of the model card.
        state_dict: the weights, where they are not the model's own (gathered from shards).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_path is not None:
        for source in sorted(tokenizer_path.iterdir()):
            if source.is_file() and source.name not in (CONFIG, WEIGHTS, CARD, "done.json"):
                with source.open("rb") as read, atomic_write(folder / source.name, "wb") as write:
                    shutil.copyfileobj(read, write)
    with atomic_write(folder / CARD) as file:
        file.write(card)
    config = model.config
    if isinstance(config, dict):
        write_weights(model.state_dict() if state_dict is None else state_dict, folder / WEIGHTS)
        write_json(folder / CONFIG, config)
    else:
        _save_pretrained(model, folder, state_dict)


def describe(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Add entries to what a model's `config.json` will say."""
    config: Any = model.config
    if isinstance(config, dict):
        config.update(values)
    else:
        config.update(dict(values))  # a transformers configuration, whose entries are attributes


def described(model: nn.Module, name: str, default: Any) -> Any:
    """An entry of a model's `config.json`; `default` where there is none."""
    config: Any = model.config
    return config.get(name, default) if isinstance(config, dict) else getattr(config, name, default)


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a folder, in eval mode, with its `.config` (a dict for the package's own models).

    Raises:
        InputError: naming the file, if the folder is incomplete, damaged or of an unknown type.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder")
    config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder / WEIGHTS}: is missing")
    if config["model_type"] in own.model_types():
        model = _load_own(folder, config)
    elif _writes(config):
        model = own.seq2seq().load_seq2seq(folder)
    else:
        model = own.transformer().load_classifier(folder)
    return in_own_memory(model).to(device).eval()


def in_own_memory(model: nn.Module) -> nn.Module:
    """Copy a model's weights out of the mapped file into memory that torch aligns, and return the model.

    A matrix product on a CPU rounds differently for weights at another alignment, and the address at which a file is
    mapped differs from process to process: the answers of one model on two ranks would differ in the last digit.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def weights_fingerprint(model: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 of all weights and buffers: names in order, dtypes, shapes and bytes."""
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parameter_count(model: nn.Module) -> int:
    """Number of trained and frozen parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def write_weights(weights: Mapping[str, Tensor], path: Path, told: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file under its name when it is complete. No two weights may share memory.

    Args:
        told: metadata of the file in place of its format. One entry only: the order of several would be random.
    """
    tensors = {name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}
    with _aside(path.parent) as aside:
        save_file(tensors, aside / WEIGHTS, metadata=dict(told or {"format": "pt"}))
        _move(aside / WEIGHTS, path)


def _save_pretrained(model: Any, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
    """transformers' own writer, which knows the names that a checkpoint of each architecture has."""
    with _aside(folder) as aside, quiet_transformers():
        weights = None if state_dict is None else dict(state_dict)  # a copy: the writer empties it
        # transformers writes on rank 0 only; a student belongs to the rank that trained it.
        model.should_save_on_this_rank = lambda is_main_process: True
        # One file, whatever the size: readers and fingerprints then know its name.
        model.save_pretrained(aside, state_dict=weights, max_shard_size="1000GB")
        del model.should_save_on_this_rank
        written = sorted(aside.iterdir(), key=lambda file: (file.name == CONFIG, file.name))
        for file in written:
            _move(file, folder / file.name)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=folder) as name:
        yield Path(name)


def _move(source: Path, target: Path) -> None:
    follow_umask(source)  # safetensors writes with mode 0600
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
    fsync_folder(target.parent)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: is missing") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}:1: must be a JSON object")
    found = config.get("model_type")
    if isinstance(found, str) and found in own.model_types() or _writes(config):
        return config
    known = own.transformer().classifier_types()
    if found not in known:
        hint = suggest(found, [*own.model_types(), *known])
        allowed = f"{', '.join(own.model_types())}, or a sequence classifier of transformers such as bert"
        raise InputError(f"{path}: model_type: unknown {found!r}{hint} (allowed: {allowed})")
    return config


def _writes(config: dict[str, Any]) -> bool:
    """Whether this configuration is of an encoder-decoder; `models.seq2seq` is imported only where it says so."""
    return bool(config.get("is_encoder_decoder")) and bool(own.seq2seq().writes(config))


def _load_own(folder: Path, config: dict[str, Any]) -> nn.Module:
    try:
        config["id2label"] = {int(index): label for index, label in config["id2label"].items()}
        model = own.from_config(config)
    except KeyError as error:
        raise InputError(f"{folder / CONFIG}: {error.args[0]}: is missing") from None
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder / CONFIG}: describes no {config['model_type']} model: {error}") from None
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS}: damaged: {error}") from None
    expected = model.state_dict()
    for name in sorted({*expected, *weights}):
        problem = _misfit(expected.get(name), weights.get(name))
        if problem:
            raise InputError(f"{folder / WEIGHTS}: {name}: {problem}")
    model.load_state_dict(weights)
    return model


def _misfit(expected: Tensor | None, found: Tensor | None) -> str | None:
    if found is None:
        return "is missing"
    if expected is None:
        return f"is no weight of the model that {CONFIG} describes"
    if expected.shape != found.shape:
        return f"has shape {list(found.shape)}, {CONFIG} says {list(expected.shape)}"
    return None

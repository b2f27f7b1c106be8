"""`dtrain convert`: a pretrained model's weights as `model.safetensors` under the names that transformers 5 reads.

Older checkpoints are `pytorch_model.bin`, a pickle, which can run code when it is opened. Here it is opened once, by
torch's restricted reader, which accepts tensors and nothing else. Names of weights that transformers 5 cannot read are
changed, too:

    module.bert.encoder...       saved from within DDP: the prefix `module.` is removed
    embeddings..., encoder...    saved without the encoder's name: `bert.` or `nezha.` is prepended
    bert.encoder... of a NEZHA   Huawei's name of its encoder: becomes `nezha.`
    LayerNorm.gamma and beta     the oldest names: become `LayerNorm.weight` and `LayerNorm.bias`
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dtrain.data.pretrained import pickled_files
from dtrain.errors import EXIT_DONE, DtrainError, InputError
from dtrain.log import say
from dtrain.models.folder import CONFIG, WEIGHTS, write_weights
from dtrain.runfolder import publish_folder

COMPUTED = ("relative_positions", "embeddings.position_ids")  # tables that models compute by themselves
ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.")
FILES = ["*.json", "*.txt", "*.model", "pytorch_model*.bin", "model*.safetensors"]  # of a hub model


def run(source: str, target: str | None) -> int:
    """Run the command: `source` is a folder, which gets the file, or a hub model, which is first copied into `target`.

    Raises:
        InputError: there is no such folder or model, or its weights cannot be converted; the folder stays as it is.
    """
    folder = Path(source)
    fetched = not folder.is_dir()
    if fetched:
        folder = _from_hub(source, Path(target or source.rpartition("/")[2]))
    elif target is not None:
        raise InputError(
            f"convert: {source} is a folder, and gets its {WEIGHTS} beside what is there; leave {target} out"
        )
    names = convert_weights(folder, needed=not fetched)
    say(f"{folder / WEIGHTS}: {len(names)} weights; a recipe takes them by `pretrained: {folder}`")
    return EXIT_DONE


def convert_weights(folder: Path, *, needed: bool = True) -> list[str]:
    """Write a folder's pickled weights, or its safetensors under names that are not read, as `model.safetensors`.

    Args:
        needed: whether a file that needs no conversion is an error; else it stays as it is.

    Returns:
        The names of the weights in `model.safetensors`.

    Raises:
        InputError: naming the file that is missing, cannot be read or needs no conversion.
    """
    model_type = _model_type(folder)
    pickled = pickled_files(folder)
    if (folder / WEIGHTS).is_file():
        weights = _tensors(folder / WEIGHTS)
        if set(renamed(weights, model_type)) == set(weights):
            if not needed:
                return sorted(weights)
            raise InputError(
                f"{folder / WEIGHTS}: is there already, with the names that are wanted: nothing to convert"
            )
    elif pickled:
        weights = {name: tensor for path in pickled for name, tensor in _unpickled(path).items()}
    else:
        raise InputError(f"{folder}: holds neither pytorch_model.bin nor {WEIGHTS}")
    # Each is copied: safetensors refuses tensors that share memory, as tied embeddings do.
    named = {name: tensor.clone() for name, tensor in renamed(weights, model_type).items()}
    write_weights(named, folder / WEIGHTS)
    return sorted(named)


def renamed(weights: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """The weights, renamed by the rules in the docstring of this module, without computed tables."""
    known = model_type in ("bert", "nezha")
    found = {}
    for name, tensor in weights.items():
        name = re.sub(r"^module\.", "", name)
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if model_type == "nezha":
            name = re.sub(r"^bert\.", "nezha.", name)
        if known and name.startswith(ENCODER_PARTS):
            name = f"{model_type}.{name}"
        if not any(table in name for table in COMPUTED):
            found[name] = tensor
    return found


def _from_hub(name: str, folder: Path) -> Path:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"convert: {name}: no such folder")
    if folder.exists():
        raise InputError(f"convert: {folder} is there already; name another folder: dtrain convert {name} FOLDER")
    try:
        with publish_folder(folder) as incoming:  # a download that breaks off leaves no folder of this name
            snapshot_download(name, local_dir=incoming, allow_patterns=FILES)
    except DtrainError:
        raise
    except Exception as error:  # an unknown name, no network, a full disk: each has its own type
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"convert: {name}: neither a folder nor a hub model that can be fetched: {line}") from None
    return folder


def _model_type(folder: Path) -> str:
    path = folder / CONFIG
    if not path.is_file() and (folder / "bert_config.json").is_file():
        huawei = "python -m dtrain.models.nezha.convert SOURCE TARGET"
        raise InputError(f"{folder}: holds bert_config.json, as Huawei's NEZHA does: `{huawei}` converts it")
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        return str(config["model_type"])
    except FileNotFoundError:
        raise InputError(f"{path}: is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: tells no model_type: {error}") from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        # The first lines of torch's message say how to open the file anyway, which would not be safe.
        reason = (str(error).rpartition("error: ")[2].strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: is damaged, or holds more than weights and is not opened: {reason}") from None
    for key in ("state_dict", "model"):  # some training scripts wrap them
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise InputError(f"{path}: holds no mapping from names to weights")
    return dict(found)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged: {error}") from None

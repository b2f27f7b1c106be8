"""Checks of a pretrained model's folder without loading its weights: whether they are there and fit the recipe.

Only `config.json`, the tokenizer's files and the header of the safetensors file are read; the header is a JSON object
with the name and shape of every weight. Needs no torch, so that `dtrain check` quickly finds what training would find
late. Models of the hub are checked when they are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtrain.data.external import positions
from dtrain.data.files import PACKAGE
from dtrain.recipe.models import EncoderSpec

WEIGHTS = "model.safetensors"
# Files that may hold the vocabulary of a model's tokenizer.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.codes", "*.vocab", "*.tiktoken")
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
CONVERT = "`dtrain convert {}` turns it into model.safetensors"
# Pickled weights can run any code when they are opened, so they are converted once, by a reader that refuses code.
PICKLED = f"has pickled weights only ({{}}), which can run code when they are opened; {CONVERT}"


def check_pretrained(spec: EncoderSpec, key: str, max_length: int) -> list[str]:
    """Problems with the pretrained model's folder that a model section names, a line each that begins with `key`.

    Args:
        key: the recipe's key, for example `bert: model.pretrained`.
        max_length: the most tokens of a text.
    """
    name = spec.pretrained
    if name is None or spec.made_here:
        return []
    if name.startswith(PACKAGE):
        return [
            f"{key}: {name}: `{PACKAGE}` is for data files that come with dtrain, and no model comes with it; name the "
            "model's folder or a model of the hub"
        ]
    folder = Path(name)
    if folder.is_dir():
        return [f"{key}: {problem}" for problem in _problems(spec, folder, max_length)]
    looks_like_a_path = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if folder.exists() or looks_like_a_path:
        return [f"{key}: no such folder {folder}"]
    return []


def pickled_files(folder: Path) -> list[Path]:
    """The files of a model's weights that torch.save or an older transformers wrote."""
    return sorted(path for path in folder.glob("pytorch_model*.bin") if path.is_file())


def _problems(spec: EncoderSpec, folder: Path, max_length: int) -> Iterator[str]:
    if not (folder / "config.json").is_file():
        yield f"{folder} holds no config.json"
        return
    try:
        config = _mapping(folder / "config.json")
        shapes = _shapes(folder)
    except (OSError, ValueError) as error:
        yield f"{folder}: {' '.join(str(error).split())}"
        return
    if shapes is None:
        pickled = pickled_files(folder)
        yield f"{folder} {PICKLED.format(pickled[0].name, folder) if pickled else f'holds no {WEIGHTS}'}"
    else:
        yield from _unlike_config(folder, config, shapes)
    problems = list(_unlike_recipe(folder, config, max_length))
    yield from problems or (f"{folder}: {problem}" for problem in spec.unlike_folder(folder, config))


def _shapes(folder: Path) -> dict[str, list[int]] | None:
    """Every weight's shape by name; None where there is no safetensors file. Raises ValueError for a damaged one."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        names = sorted(set(_mapping(index).get("weight_map", {}).values()))
    elif (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    else:
        return None
    shapes: dict[str, list[int]] = {}
    for name in names:
        shapes |= _header(folder / name)
    return shapes


def _header(path: Path) -> dict[str, list[int]]:
    """Shapes by name from a safetensors file: 8 bytes with the length of a JSON object, the object, tensors' data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        values = json.loads(raw)
        shapes = {name: list(entry["shape"]) for name, entry in values.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for name, entry in values.items() if name != "__metadata__"), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise ValueError(f"{path.name} is damaged, or no safetensors file") from None
    if path.stat().st_size != 8 + length + end:
        raise ValueError(f"{path.name} is damaged: {path.stat().st_size} bytes, expected {8 + length + end}")
    return shapes


def _unlike_config(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> Iterator[str]:
    """Problems with weights whose names or shapes differ from those of the encoder that config.json describes."""
    if shapes and all(name.startswith("module.") for name in shapes):
        yield f"{folder}: its weights are named module.* (saved from within DDP); {CONVERT.format(folder)} without that"
        return
    if config.get("model_type") not in ("bert", "nezha"):
        return  # of other types the names are not known here; loading tells
    layers = config.get("num_hidden_layers", 12)
    found: dict[str, set[str]] = {}  # layer -> names of its weights
    for name in shapes:
        if "encoder.layer." in name:
            layer, _, weight = name.split("encoder.layer.", 1)[1].partition(".")
            found.setdefault(layer, set()).add(weight)
    if isinstance(layers, int) and str(layers - 1) not in found:
        yield f"{folder}: config.json says {layers} layers, and {WEIGHTS} lacks the last one's weights"
    every = set[str]().union(*found.values())
    lacking = [f"{layer}.{weight}" for layer, weights in found.items() for weight in every - weights]
    if lacking:
        more = f" and {len(lacking) - 1} more weight(s)" if len(lacking) > 1 else ""
        yield f"{folder}: {WEIGHTS} lacks encoder.layer.{min(lacking)}{more}"
    sizes = (
        ("embeddings.word_embeddings.weight", 0, "vocab_size", "tokens, and {} has embeddings of {}"),
        ("embeddings.word_embeddings.weight", 1, "hidden_size", "features, and {} has embeddings with {}"),
        ("layer.0.intermediate.dense.weight", 0, "intermediate_size", "features between, and {} has {}"),
    )
    for ending, axis, key, what in sizes:
        for name, shape in shapes.items():
            if name.endswith(ending) and config.get(key) not in (None, shape[axis]):
                yield f"{folder}: config.json says {config[key]} {what.format(WEIGHTS, shape[axis])}"


def _unlike_recipe(folder: Path, config: dict[str, Any], max_length: int) -> Iterator[str]:
    """Problems with a NEZHA's head size, the vocabulary, the number of embeddings, and the number of positions."""
    hidden, heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    known = config.get("model_type") == "nezha" and isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    if known and (hidden % heads or hidden // heads % 2):
        yield f"{folder}: config.json says hidden_size {hidden} and {heads} heads: a NEZHA's heads have an even size"
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        yield f"{folder} holds no vocabulary (allowed: tokenizer.json, vocab.txt, ...); fetch it from where the model is from"
    vocabulary, embeddings = _vocabulary(folder), config.get("vocab_size")
    if vocabulary is not None and isinstance(embeddings, int) and vocabulary > embeddings:
        yield (
            f"{folder}: has {embeddings} token embeddings, but its tokenizer has {vocabulary} tokens; "
            "take the tokenizer that the model was trained with"
        )
    longest = positions(config)
    if isinstance(longest, int) and max_length > longest:
        yield f"{folder}: has {longest} positions, fewer than data.max_length, {max_length}; set that to {longest} or less"


def _vocabulary(folder: Path) -> int | None:
    """The number of tokens of a folder's tokenizer; None where tokenizer.json or vocab.txt does not tell."""
    whole, lines = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if whole.is_file():
            values = _mapping(whole)
            model = values["model"]["vocab"]
            numbers = range(len(model)) if isinstance(model, list) else model.values()
            return 1 + max([*numbers, *(token["id"] for token in values.get("added_tokens") or [])], default=-1)
        if lines.is_file():
            return sum(1 for line in lines.read_text(encoding="utf-8").split("\n") if line)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # the stage `prepare` reports what is wrong with a tokenizer
    return None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must be a JSON object")
    return value

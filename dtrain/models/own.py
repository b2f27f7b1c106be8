"""Models whose torch modules are the package's own, or were registered by another: built, and rebuilt from config.json.

The `model_type` in config.json is the recipe's `model.type` with "dtrain-" before it.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import nn

from dtrain.recipe.models import Architecture, architectures
from dtrain.version import __version__

PREFIX = "dtrain-"
COMMON = ("vocab_size", "pad_token_id", "classes", "tags")  # constructor arguments that are no part of the shape


def model_types() -> list[str]:
    """Every `model_type` of config.json that `from_config` builds."""
    own = [(name, spec) for name, spec in architectures().items() if spec.module is not None]
    return [PREFIX + name for name, _ in sorted(own, key=lambda item: item[1].__module__.endswith(".transformers"))]


def module_of(model_type: str) -> type[nn.Module]:
    """The class of the modules of a `model_type`."""
    path = architectures()[model_type.removeprefix(PREFIX)].module
    assert path is not None
    home, _, name = path.partition(":")
    found: type[nn.Module] = getattr(importlib.import_module(home), name)
    return found


def transformer() -> Any:
    """The module `models.transformer`, imported at the first call.

    It imports transformers' `modeling_utils`, which takes half a second that ranks with small students save.
    """
    return importlib.import_module("dtrain.models.transformer")


def builder(spec: Architecture) -> Any:
    """The function that builds a new model of an architecture of transformers."""
    assert spec.builder is not None
    home, _, name = spec.builder.partition(":")
    return getattr(importlib.import_module(home), name)


def seq2seq() -> Any:
    """The module `models.seq2seq`, imported at the first call, as `models.transformer` is."""
    return importlib.import_module("dtrain.models.seq2seq")


def without_mask_checks(model: nn.Module, device: torch.device) -> nn.Module:
    """As `models.transformer.without_mask_checks`, which is imported only where a model has a transformer inside."""
    # The package's own models have a configuration, too: a dict.
    configurations = [getattr(module, "config", {}) for module in model.modules()]
    if device.type != "cpu" and not all(isinstance(config, dict) for config in configurations):
        transformer().without_mask_checks(model, device)
    return model


def reads_pooler(model_type: str) -> bool:
    """Whether its modules use the pooler of their encoder."""
    return bool(getattr(module_of(model_type), "reads_pooler", False))


def takes(model_type: str) -> list[str]:
    """Names of the required arguments of its constructor, in order."""
    arguments = inspect.signature(module_of(model_type)).parameters
    return [name for name, argument in arguments.items() if argument.default is inspect.Parameter.empty]


def may_take(model_type: str) -> list[str]:
    """Names of the optional arguments of its constructor; config.json has those that a model was built with."""
    return [name for name in inspect.signature(module_of(model_type)).parameters if name not in takes(model_type)]


def new_config(
    model_type: str, shape: dict[str, Any], *, vocabulary: int, labels: list[str], pad_id: int
) -> dict[str, Any]:
    """The `config.json` of a new model; `shape` holds the other arguments of its constructor."""
    return {
        "model_type": model_type,
        "architectures": [module_of(model_type).__name__],
        **shape,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "vocab_size": vocabulary,
        "pad_token_id": pad_id,
        "dtrain_version": __version__,
    }


def from_config(config: dict[str, Any], encoder: nn.Module | None = None) -> Any:
    """A new model with `config` as its `.config`.

    Args:
        config: as `new_config` makes it; for models with an encoder it also has `encoder`, the encoder's transformers
            configuration (or None).
        encoder: used in place of a new one that `config` describes.

    Raises:
        KeyError: if the configuration lacks a key.
    """
    labels = [label for _, label in sorted(config["id2label"].items())]
    known: dict[str, Any] = {"tags": labels, "classes": len(labels)}
    wanted = takes(config["model_type"])
    if "encoder" in wanted:
        if encoder is None and config["encoder"] is not None:
            encoder = transformer().encoder_from_config(config["encoder"], pooler=reads_pooler(config["model_type"]))
        known["encoder"] = encoder
    arguments = {name: known[name] if name in known else config[name] for name in wanted}
    arguments |= {name: config[name] for name in may_take(config["model_type"]) if name in config}
    model: Any = module_of(config["model_type"])(**arguments)
    model.config = config
    return model

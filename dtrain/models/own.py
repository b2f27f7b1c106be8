"""The package's own classifiers and their configuration, from which one is built or rebuilt."""

from __future__ import annotations

from typing import Any

from dtrain import __version__
from dtrain.models.bilstm import BiLSTM
from dtrain.models.textcnn import TextCNN

# By `model_type` in config.json; a recipe's `model.type` is the part after "dtrain-".
CLASSES: dict[str, type[BiLSTM] | type[TextCNN]] = {"dtrain-bilstm": BiLSTM, "dtrain-textcnn": TextCNN}


def new_config(
    model_type: str, shape: dict[str, Any], *, vocabulary: int, labels: list[str], pad_id: int
) -> dict[str, Any]:
    """The `config.json` of a new model; `shape` holds the other arguments of its constructor."""
    return {
        "model_type": model_type,
        "architectures": [CLASSES[model_type].__name__],
        **shape,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "vocab_size": vocabulary,
        "pad_token_id": pad_id,
        "dtrain_version": __version__,
    }


def from_config(config: dict[str, Any]) -> BiLSTM | TextCNN:
    """A new model with `config` as its `.config`.

    Raises:
        KeyError: if the configuration lacks a key.
    """
    model_class = CLASSES[config["model_type"]]
    model = model_class(
        vocab_size=config["vocab_size"],
        classes=len(config["id2label"]),
        pad_token_id=config["pad_token_id"],
        **{key: config[key] for key in model_class.SHAPE},
    )
    model.config = config
    return model

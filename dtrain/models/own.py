"""The package's own models and their configuration, from which one is built or rebuilt."""

from __future__ import annotations

from typing import Any

from torch import nn

from dtrain.models.bert_cnn import BertCNN
from dtrain.models.bilstm import BiLSTM
from dtrain.models.fasttext import FastText
from dtrain.models.idcnn import IDCNN
from dtrain.models.multi_exit import MultiExit
from dtrain.models.sequence import SequenceTagger
from dtrain.models.siamese import Siamese
from dtrain.models.tagger import Tagger
from dtrain.models.text_rcnn import TextRCNN
from dtrain.models.textcnn import TextCNN
from dtrain.version import __version__

OwnModel = BiLSTM | TextCNN | TextRCNN | FastText | Siamese | BertCNN | MultiExit | Tagger | IDCNN

# By `model_type` in config.json; a recipe's `model.type` is the part after "dtrain-".
CLASSES: dict[str, type[OwnModel]] = {
    "dtrain-bilstm": BiLSTM,
    "dtrain-textcnn": TextCNN,
    "dtrain-text_rcnn": TextRCNN,
    "dtrain-fasttext": FastText,
    "dtrain-siamese": Siamese,
    "dtrain-bert_cnn": BertCNN,
    "dtrain-multi_exit": MultiExit,
    "dtrain-tagger": Tagger,
    "dtrain-idcnn": IDCNN,
}

WITH_ENCODER: tuple[type[OwnModel], ...] = (Tagger, BertCNN, MultiExit)


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


def from_config(config: dict[str, Any], encoder: nn.Module | None = None) -> OwnModel:
    """A new model with `config` as its `.config`.

    Args:
        config: as `new_config` makes it; of models with an encoder it also has `encoder`, its transformers configuration (or None).
        encoder: taken instead of a new one that `config` describes.

    Raises:
        KeyError: if the configuration lacks a key.
    """
    model_class = CLASSES[config["model_type"]]
    labels = [label for _, label in sorted(config["id2label"].items())]
    arguments: dict[str, Any] = {key: config[key] for key in ("vocab_size", "pad_token_id", *model_class.SHAPE)}
    arguments |= {"tags": labels} if issubclass(model_class, SequenceTagger) else {"classes": len(labels)}
    if model_class in WITH_ENCODER:
        if encoder is None and config["encoder"] is not None:
            from dtrain.models.transformer import encoder_from_config  # transformers takes 0.6 s to import

            encoder = encoder_from_config(config["encoder"])
        arguments["encoder"] = encoder
    model = model_class(**arguments)
    model.config = config
    return model

"""Huawei's original NEZHA checkpoints, PyTorch or TensorFlow, turned into model folders.

    python -m dtrain.models.nezha.convert SOURCE TARGET

SOURCE is a folder as Huawei publishes it: `bert_config.json` (or `config.json`), `vocab.txt`, and either
`pytorch_model.bin` or a TensorFlow checkpoint (`*.ckpt*.index` with its data file, read only where
tensorflow is installed). The Hugging Face releases (`sijunhe/nezha-cn-base` and its siblings) need none of
this: `from_pretrained` reads them.

Names are BERT's in both. For PyTorch the encoder's prefix changes and the oldest files call a
normalisation's weight and bias gamma and beta; for TensorFlow:

    bert/embeddings/word_embeddings    nezha.embeddings.word_embeddings.weight
    bert/encoder/layer_3/.../kernel    nezha.encoder.layer.3. ... .weight, transposed
    .../LayerNorm/gamma and beta       ... .LayerNorm.weight and bias
    cls/predictions/output_bias        cls.predictions.bias
    cls/seq_relationship/output_weights and output_bias
                                       cls.seq_relationship.weight and bias

Optimizer state and counters are left behind, and so is the position table, which is computed.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtrain.errors import InputError
from dtrain.models.folder import save_model
from dtrain.models.nezha.configuration import NezhaConfig
from dtrain.models.nezha.heads import TIED_WEIGHTS, NezhaForMaskedLM, NezhaForPreTraining
from dtrain.models.nezha.modeling import NezhaModel, NezhaPreTrainedModel
from dtrain.models.whole import first_line
from dtrain.runfolder import publish_folder

COMPUTED = "relative_positions"
ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.")
OPTIMIZER_SLOTS = {"adam_m", "adam_v", "Adam", "Adam_1", "lamb_m", "lamb_v"}
TENSORFLOW_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "kernel": "weight",
    "bias": "bias",
    "output_weights": "weight",
    "output_bias": "bias",
    "word_embeddings": "word_embeddings.weight",
    "token_type_embeddings": "token_type_embeddings.weight",
}


def pytorch_name(name: str) -> str | None:
    """This package's name for a weight in Huawei's PyTorch files; None for a computed table.

    `bert.encoder.layer.0.attention.output.LayerNorm.gamma` ->
    `nezha.encoder.layer.0.attention.output.LayerNorm.weight`
    """
    if COMPUTED in name:
        return None
    name = re.sub(r"^(module\.)?(bert\.)?", "", name)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"nezha.{name}" if name.startswith(ENCODER_PARTS) else name


def tensorflow_name(name: str) -> str | None:
    """This package's name for a TensorFlow variable; None if it is no weight. A `kernel` must be transposed.

    Raises:
        InputError: for a variable of the encoder or its heads that no NEZHA has.
    """
    *scopes, leaf = name.split("/")
    if not scopes or scopes[0] not in ("bert", "cls") or leaf in OPTIMIZER_SLOTS or COMPUTED in name:
        return None
    if leaf not in TENSORFLOW_LEAVES:
        raise InputError(f"{name}: is no variable of a NEZHA checkpoint")
    scopes[0] = {"bert": "nezha"}.get(scopes[0], scopes[0])
    return re.sub(r"layer_(\d+)", r"layer.\1", ".".join([*scopes, TENSORFLOW_LEAVES[leaf]]))


def from_pytorch(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Huawei's PyTorch weights under this package's names."""
    named = ((pytorch_name(name), tensor) for name, tensor in weights.items())
    return {name: tensor for name, tensor in named if name is not None}


def from_tensorflow(variables: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """TensorFlow variables as float32 weights under this package's names.

    Raises:
        InputError: as `tensorflow_name`.
    """
    weights = {}
    for variable, array in variables.items():
        name = tensorflow_name(variable)
        if name is not None:
            array = array.T if variable.endswith("/kernel") else array
            weights[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return weights


def build_model(config: NezhaConfig, weights: Mapping[str, Tensor]) -> NezhaPreTrainedModel:
    """The model that these weights belong to: with both pre-training heads, the masked-token head alone, or none.

    Raises:
        InputError: a line for each weight that is missing, left over or of another shape.
    """
    heads = {name.split(".")[1] for name in weights if name.startswith("cls.")}
    if "predictions" not in heads:
        prefix = "nezha."
        weights = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
        pooled = any(name.startswith("pooler.") for name in weights)
        model: NezhaPreTrainedModel = NezhaModel(config, add_pooling_layer=pooled)
    elif "seq_relationship" in heads:
        model = NezhaForPreTraining(config)
    else:
        weights = {name: t for name, t in weights.items() if not name.startswith("nezha.pooler.")}
        model = NezhaForMaskedLM(config)
    expected = model.state_dict()
    problems = [f"{name}: is missing" for name in expected if name not in {**weights, **TIED_WEIGHTS}]
    for name, tensor in weights.items():
        if name not in expected:
            problems.append(f"{name}: is no weight of this NEZHA")
        elif expected[name].shape != tensor.shape:
            problems.append(f"{name}: has shape {list(tensor.shape)}, not {list(expected[name].shape)}")
    if problems:
        raise InputError(problems)
    for name, tied in TIED_WEIGHTS.items():
        if name in weights and not torch.equal(weights[name], weights[tied]):
            raise InputError(f"{name}: differs from {tied}, which a NEZHA uses in its place")
    model.load_state_dict(weights, strict=False)
    return model


def convert(source: Path, target: Path) -> NezhaPreTrainedModel:
    """Read Huawei's folder `source`, write the model folder `target`, return the model.

    Raises:
        InputError: naming what is missing or cannot be read; nothing is written then.
    """
    path, values = _read_config(source)
    weights = _read_weights(source)
    try:
        config = NezhaConfig(**values)
        model = build_model(config, weights)
    except InputError:
        raise
    except Exception as error:  # wrong values of a configuration fail anywhere in the constructor
        raise InputError(f"{path}: describes no NEZHA that can be built: {first_line(error)}") from None
    config.architectures = [type(model).__name__]
    vocabulary = source / "vocab.txt"
    if not vocabulary.is_file():
        raise InputError(f"{vocabulary}: is missing")
    with publish_folder(target) as folder:
        save_model(model, folder, None, f"# NEZHA\n\nConverted from Huawei's files in `{source.name}`.\n")
        shutil.copyfile(vocabulary, folder / vocabulary.name)
    return model


def _read_config(source: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the configuration, and its values without those of poolers."""
    for path in (source / "bert_config.json", source / "config.json"):
        if path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{path}: not valid JSON: {error}") from None
            if not isinstance(values, dict):
                raise InputError(f"{path}: must be a JSON object")
            return path, {name: value for name, value in values.items() if not name.startswith("pooler_")}
    raise InputError(f"{source}: has neither bert_config.json nor config.json")


def _read_weights(source: Path) -> dict[str, Tensor]:
    path = source / "pytorch_model.bin"
    if path.is_file():
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise InputError(f"{path}: holds no plain weights: {first_line(error)}") from None
        if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise InputError(f"{path}: holds no plain weights: must be a mapping from names to tensors")
        return from_pytorch(weights)
    indexes = sorted(source.glob("*.ckpt*.index"))
    if len(indexes) != 1:
        found = f"{len(indexes)} TensorFlow checkpoints where one is needed"
        raise InputError(f"{source}: has no pytorch_model.bin, and {found}")
    try:
        import tensorflow
    except ImportError:
        raise InputError(f"{indexes[0]}: a TensorFlow checkpoint is read by tensorflow: install it") from None
    reader = tensorflow.train.load_checkpoint(str(indexes[0].with_suffix("")))
    return from_tensorflow({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})


def main() -> int:
    """The command line in the docstring of this module; returns the exit code, 2 for bad input."""
    if len(sys.argv) != 3:
        print("usage: python -m dtrain.models.nezha.convert SOURCE TARGET", file=sys.stderr)
        return 2
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Huawei's names and folders: each weight arrives under its name here, and what cannot be read is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForPreTraining, AutoTokenizer

from dtrain.errors import InputError
from dtrain.models import nezha
from dtrain.models.nezha import convert

HUAWEI_CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 512,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pooler_type": "first_token_transform",
    "type_vocab_size": 2,
    "vocab_size": 20,
    "use_relative_position": True,
}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("bert/embeddings/word_embeddings", "nezha.embeddings.word_embeddings.weight"),
        ("bert/embeddings/token_type_embeddings", "nezha.embeddings.token_type_embeddings.weight"),
        ("bert/embeddings/LayerNorm/gamma", "nezha.embeddings.LayerNorm.weight"),
        ("bert/embeddings/LayerNorm/beta", "nezha.embeddings.LayerNorm.bias"),
        (
            "bert/encoder/layer_11/attention/self/query/kernel",
            "nezha.encoder.layer.11.attention.self.query.weight",
        ),
        (
            "bert/encoder/layer_0/attention/output/dense/bias",
            "nezha.encoder.layer.0.attention.output.dense.bias",
        ),
        ("bert/encoder/layer_7/intermediate/dense/kernel", "nezha.encoder.layer.7.intermediate.dense.weight"),
        ("bert/encoder/layer_7/output/LayerNorm/gamma", "nezha.encoder.layer.7.output.LayerNorm.weight"),
        ("bert/pooler/dense/kernel", "nezha.pooler.dense.weight"),
        ("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight"),
        ("cls/predictions/transform/LayerNorm/beta", "cls.predictions.transform.LayerNorm.bias"),
        ("cls/predictions/output_bias", "cls.predictions.bias"),
        ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
        ("cls/seq_relationship/output_bias", "cls.seq_relationship.bias"),
        ("bert/embeddings/word_embeddings/adam_m", None),
        ("bert/encoder/layer_0/output/dense/kernel/adam_v", None),
        ("global_step", None),
        ("loss_scale", None),
    ],
)
def test_tensorflow_names(theirs: str, ours: str | None) -> None:
    assert convert.tensorflow_name(theirs) == ours


def test_a_tensorflow_variable_of_another_model() -> None:
    with pytest.raises(InputError, match="bert/embeddings/position_embeddings"):
        convert.tensorflow_name("bert/embeddings/position_embeddings")


@pytest.mark.parametrize("prefix", ["bert.", "module.bert.", ""])
def test_pytorch_names(prefix: str) -> None:
    assert (
        convert.pytorch_name(f"{prefix}encoder.layer.3.attention.output.LayerNorm.gamma")
        == "nezha.encoder.layer.3.attention.output.LayerNorm.weight"
    )
    assert convert.pytorch_name(f"{prefix}pooler.dense.bias") == "nezha.pooler.dense.bias"
    assert convert.pytorch_name("cls.seq_relationship.weight") == "cls.seq_relationship.weight"
    assert convert.pytorch_name(f"{prefix}encoder.layer.0.attention.self.relative_positions_embeddings") is None


def as_tensorflow(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The inverse, by hand: what TensorFlow would have stored for these weights."""
    variables = {"global_step": np.array(900000)}
    for name, tensor in weights.items():
        if "decoder" in name:
            continue
        array = tensor.numpy()
        path = name.replace("nezha.", "bert.").replace(".layer.", ".layer_").replace(".", "/")
        if path.endswith("embeddings/weight"):
            path = path.removesuffix("/weight")
        elif "LayerNorm" in path:
            path = path.replace("weight", "gamma").replace("bias", "beta")
        elif path == "cls/predictions/bias":
            path = "cls/predictions/output_bias"
        elif "seq_relationship" in path:
            path = path.replace("/weight", "/output_weights").replace("/bias", "/output_bias")
        elif path.endswith("weight"):
            path, array = path.removesuffix("weight") + "kernel", array.T
        variables[path] = array
        variables[f"{path}/adam_m"] = np.zeros_like(array)
    return variables


def test_tensorflow_weights_arrive(build: Any) -> None:
    model = build("NezhaForPreTraining")
    found = convert.from_tensorflow(as_tensorflow(model.state_dict()))
    back = convert.build_model(model.config, found).eval()
    ids = torch.arange(1, 19).view(2, 9)
    with torch.no_grad():
        assert torch.equal(back(ids).prediction_logits, model(ids).prediction_logits)
        assert torch.equal(back(ids).seq_relationship_logits, model(ids).seq_relationship_logits)


@pytest.fixture
def source(build: Any, tmp_path: Path) -> Path:
    """A folder as Huawei publishes it, in PyTorch."""
    folder = tmp_path / "NEZHA-Base"
    folder.mkdir()
    (folder / "bert_config.json").write_text(json.dumps(HUAWEI_CONFIG))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"北京上海天安门广场人民大会"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    weights = {
        name.replace("nezha.", "bert."): tensor
        for name, tensor in build("NezhaForPreTraining").state_dict().items()
        if name != "cls.predictions.decoder.bias"
    }
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_a_folder_becomes_a_model_folder(build: Any, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "nezha"
    convert.convert(source, target)
    nezha.register()
    model = AutoModelForPreTraining.from_pretrained(target).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(target)("北京人民")["input_ids"]])
    assert ids.tolist() == [[2, 5, 6, 14, 15, 3]]
    with torch.no_grad():
        wanted = build("NezhaForPreTraining")(ids).prediction_logits
        assert torch.equal(model(ids).prediction_logits, wanted)
    assert {file.name for file in target.iterdir()} >= {"config.json", "model.safetensors", "vocab.txt"}


def test_bad_folders(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    target = tmp_path / "target"
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            convert.convert(source, target)
        assert not target.exists()

    torch.save(
        {**weights, "bert.embeddings.position_embeddings.weight": torch.zeros(2)},
        source / "pytorch_model.bin",
    )
    refused("position_embeddings.weight: is no weight of this NEZHA")
    torch.save({**weights, "cls.predictions.bias": torch.zeros(3)}, source / "pytorch_model.bin")
    refused(r"cls.predictions.bias: has shape \[3\], not \[20\]")
    torch.save({**weights, "cls.predictions.decoder.weight": torch.zeros(20, 16)}, source / "pytorch_model.bin")
    refused("decoder.weight: differs from nezha.embeddings.word_embeddings.weight")
    del weights["bert.pooler.dense.bias"]
    torch.save(weights, source / "pytorch_model.bin")
    refused("nezha.pooler.dense.bias: is missing")
    (source / "pytorch_model.bin").write_bytes(b"no weights")
    refused("pytorch_model.bin: holds no plain weights")
    (source / "pytorch_model.bin").unlink()
    refused("0 TensorFlow checkpoints")
    (source / "model.ckpt-900000.index").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    refused("read by tensorflow")
    (source / "bert_config.json").write_text("{")
    refused("bert_config.json: not valid JSON")
    (source / "bert_config.json").write_text("[1]")
    refused("bert_config.json: must be a JSON object")
    (source / "bert_config.json").unlink()
    refused("neither bert_config.json nor config.json")
    monkeypatch.setattr(sys, "argv", ["convert", str(source), str(target)])
    assert convert.main() == 2
    assert "neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"hidden_size": "16"},
        {"vocab_size": -1},
        {"hidden_act": "x"},
    ],
)
def test_configs_that_describe_no_nezha(values: dict[str, Any], source: Path, tmp_path: Path) -> None:
    place = source / "bert_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | values))
    with pytest.raises(InputError, match=r"bert_config.json: describes no NEZHA that can be built: \S") as error:
        convert.convert(source, tmp_path / "target")
    assert len(error.value.problems) == 1 and not (tmp_path / "target").exists()


@pytest.mark.parametrize("weights", [torch.zeros(2), {"bert.pooler.dense.bias": 1}])
def test_files_that_hold_no_weights(weights: object, source: Path, tmp_path: Path) -> None:
    torch.save(weights, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin: holds no plain weights: must be a mapping"):
        convert.convert(source, tmp_path / "target")


def test_code_in_a_weights_file_is_not_run(source: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"bert.pooler.dense.bias": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds no plain weights"):
        convert.convert(source, tmp_path / "target")
    assert not (tmp_path / "ran").exists()

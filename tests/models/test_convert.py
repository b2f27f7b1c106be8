"""`dtrain convert`: pickled and oddly named weights become the same model in safetensors, and nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

import dtrain.models.convert as convert
from dtrain.__main__ import main
from dtrain.data.pretrained import check_pretrained
from dtrain.errors import InputError
from dtrain.models import build
from dtrain.models.nezha import NezhaConfig, NezhaForMaskedLM
from dtrain.recipe.architectures.transformers import BertSpec, NezhaSpec

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def oldest(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


NAMES: dict[str, Any] = {
    "as they are": lambda name: name,
    "gamma and beta": oldest,
    "from within DDP": lambda name: f"module.{name}",
    "without the encoder's name": lambda name: name.split(".", 1)[1] if name.startswith(("bert.", "nezha.")) else name,
    "Huawei's": lambda name: oldest(f"module.{name}").replace("nezha.", "bert."),
}


def source(kind: str, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model folder without weights, its model and the weights."""
    torch.manual_seed(3)
    model: Any = NezhaForMaskedLM(NezhaConfig(**SHAPE)) if kind == "nezha" else BertForMaskedLM(BertConfig(**SHAPE))
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "vocab.txt").write_text("".join(f"token{n}\n" for n in range(SHAPE["vocab_size"])))
    return model, dict(model.state_dict())


def spec(kind: str, folder: Path) -> Any:
    return (NezhaSpec if kind == "nezha" else BertSpec).model_validate({"type": kind, "pretrained": str(folder)})


@pytest.mark.parametrize("kind", ["bert", "nezha"])
@pytest.mark.parametrize("names", NAMES)
def test_the_converted_folder_is_the_model(kind: str, names: str, tmp_path: Path) -> None:
    model, weights = source(kind, tmp_path)
    torch.save({NAMES[names](name): tensor for name, tensor in weights.items()}, tmp_path / "pytorch_model.bin")
    (problem,) = check_pretrained(spec(kind, tmp_path), "t: model.pretrained", 16)
    assert f"`dtrain convert {tmp_path}` turns it into model.safetensors" in problem and "can run code" in problem

    assert main(["convert", str(tmp_path)]) == 0
    assert check_pretrained(spec(kind, tmp_path), "t: model.pretrained", 16) == []
    taken = build(spec(kind, tmp_path), vocabulary=40, labels=["a", "b"], pad_id=0, max_length=16)
    expected = model.base_model.state_dict()
    found = taken.base_model.state_dict()  # type: ignore[operator,union-attr]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if "pooler" not in name)


def test_ddp_names_in_safetensors_are_refused_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, weights = source("bert", tmp_path)
    save_file({f"module.{name}": tensor.clone() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    (problem,) = check_pretrained(spec("bert", tmp_path), "t: model.pretrained", 16)
    assert (
        problem.startswith(f"t: model.pretrained: {tmp_path}: its weights are named module.*")
        and "dtrain convert" in problem
    )
    assert main(["convert", str(tmp_path)]) == 0
    assert check_pretrained(spec("bert", tmp_path), "t: model.pretrained", 16) == []
    capsys.readouterr()
    assert main(["convert", str(tmp_path)]) == 2
    assert "nothing to convert" in capsys.readouterr().err


def test_an_encoder_alone_and_shards_and_wrappers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SHAPE))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    first, second = dict(list(model.state_dict().items())[:9]), dict(list(model.state_dict().items())[9:])
    torch.save({"state_dict": first, "epoch": 3}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(second, tmp_path / "pytorch_model-00002-of-00002.bin")
    convert.convert_weights(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[f"bert.{name}"], tensor) for name, tensor in model.state_dict().items())
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


class Attack:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source("bert", tmp_path)
    capsys.readouterr()
    for write in (pickle.dump, torch.save):
        with (tmp_path / "pytorch_model.bin").open("wb") as file:
            write({"bert.a": Attack(tmp_path / "attacked")}, file)  # type: ignore[operator]
        assert main(["convert", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "holds more than weights" in error and "Traceback" not in error and error.count("\n") == 1
        assert not (tmp_path / "attacked").exists() and not (tmp_path / "model.safetensors").exists()


def test_what_cannot_be_converted_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "huawei").mkdir()
    (tmp_path / "huawei" / "bert_config.json").write_text("{}")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for words, expected in (
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path / "empty"], "config.json: is missing"),
        ([tmp_path / "huawei"], "dtrain.models.nezha.convert"),
        ([tmp_path / "bare"], "holds neither pytorch_model.bin nor model.safetensors"),
        ([tmp_path / "bare", tmp_path / "other"], "leave"),
    ):
        assert main(["convert", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1, error


def test_a_hub_model_is_fetched_and_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `sijunhe/nezha-cn-base`, should it be published as pytorch_model.bin alone."""
    hub = tmp_path / "hub"
    model, weights = source("nezha", hub)
    torch.save(weights, hub / "pytorch_model.bin")

    def fetch(name: str, *, local_dir: Path, allow_patterns: list[str]) -> None:
        assert name == "somebody/nezha-cn-base"
        shutil.copytree(hub, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(convert, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "somebody/nezha-cn-base"]) == 0
    assert (
        load_file(tmp_path / "nezha-cn-base" / "model.safetensors").keys()
        >= dict(model.base_model.named_parameters(prefix="nezha")).keys()
    )
    assert main(["convert", "somebody/nezha-cn-base"]) == 2  # is there already


def test_a_hub_model_that_needs_no_conversion_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dtrain convert NAME` fetches a model for machines without a network, whatever its files."""
    hub = tmp_path / "hub"
    BertForMaskedLM(BertConfig(**SHAPE)).save_pretrained(hub)

    def fetch(name: str, *, local_dir: Path, **_: Any) -> None:
        shutil.copytree(hub, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(convert, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "somebody/bert"]) == 0
    assert (tmp_path / "bert" / "model.safetensors").read_bytes() == (hub / "model.safetensors").read_bytes()
    assert "a recipe takes them by `pretrained: bert`" in capsys.readouterr().out


def test_a_download_that_breaks_off_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str, *, local_dir: Path, **_: Any) -> None:
        local_dir.mkdir(exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(convert, "snapshot_download", broken)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "somebody/bert"]) == 2
    assert "can be fetched: the network is gone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_hub_model_without_safetensors_says_what_to_do(tmp_path: Path) -> None:
    source("bert", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="`dtrain convert .*` turns that into model.safetensors"):
        build(spec("bert", tmp_path), vocabulary=40, labels=["a", "b"], pad_id=0, max_length=16)

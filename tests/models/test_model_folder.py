"""Model folders: written whole, read back bit for bit, and refused by name when something is wrong."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

import dtrain
from dtrain.errors import InputError
from dtrain.models import build, load, parameter_count, save_model, weights_fingerprint
from dtrain.recipe.architectures.classifiers import BiLSTMSpec, TextCNNSpec
from dtrain.recipe.architectures.transformers import BertSpec

LABELS = ["财经", "体育"]
SPECS: dict[str, Any] = {
    "textcnn": TextCNNSpec(type="textcnn", embedding=5, filters=4, widths=[2, 3], dropout=0.3),
    "bilstm": BiLSTMSpec(type="bilstm", embedding=5, hidden=4, layers=2, pooling="max"),
    "bert": BertSpec(type="bert", hidden=16, layers=1, heads=2),
}
BATCH = {
    "input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    return build(SPECS[kind], vocabulary=30, labels=LABELS, pad_id=0)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", SPECS)
def test_round_trip(kind: str, tmp_path: Path, tokenizer: Path) -> None:
    model = make(kind)
    folder = tmp_path / "models" / kind
    save_model(model, folder, tokenizer, "# A model\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (folder / "README.md").read_text(encoding="utf-8") == "# A model\n"
    assert (folder / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())
    loaded = dtrain.load(folder)
    assert not loaded.training
    assert weights_fingerprint(loaded) == weights_fingerprint(model)
    with torch.no_grad():
        assert torch.equal(loaded(**BATCH).logits, model.eval()(**BATCH).logits)


@pytest.mark.parametrize("kind", SPECS)
def test_same_weights_same_bytes(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(make(kind), tmp_path / name, None, "card")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("kind", ["textcnn", "bilstm"])
def test_config_of_own_models(kind: str, tmp_path: Path) -> None:
    save_model(make(kind), tmp_path, None, "card")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == f"dtrain-{kind}"
    assert config["id2label"] == {"0": "财经", "1": "体育"} and config["label2id"] == {"财经": 0, "体育": 1}
    assert config["vocab_size"] == 30 and config["pad_token_id"] == 0
    assert config["dtrain_version"] == dtrain.__version__
    shape = SPECS[kind].model_dump(exclude={"type", "vectors"})
    assert shape == {key: config[key] for key in shape}
    loaded = load(tmp_path)
    assert loaded.config == make(kind).config  # the keys of id2label are numbers again
    if kind == "textcnn":
        assert loaded.dropout.p == 0.3


def test_transformers_loads_a_bert_folder(tmp_path: Path) -> None:
    model = make("bert")
    save_model(model, tmp_path, None, "card")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.id2label == {0: "财经", 1: "体育"}
    with torch.no_grad():
        assert torch.equal(loaded(**BATCH).logits, model.eval()(**BATCH).logits)


@pytest.mark.parametrize("kind", SPECS)
def test_gathered_weights_are_written_instead(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    gathered = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    save_model(model, tmp_path, None, "card", state_dict=gathered)
    assert weights_fingerprint(load(tmp_path)) == weights_fingerprint(gathered)


@pytest.mark.parametrize("kind", SPECS)
def test_other_files_stay_and_nothing_is_left_aside(kind: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    save_model(make(kind), tmp_path, None, "old")
    save_model(make(kind), tmp_path, None, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", "config.json", "metrics.json", "model.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("kind", SPECS)
def test_files_have_the_mode_that_the_umask_says(kind: str, tmp_path: Path, tokenizer: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(make(kind), tmp_path / "model", tokenizer, "card")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 5 and set(modes.values()) == {"0o640"}, modes


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_absent_folder_and_files(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'}: no such model folder"
    assert refused(tmp_path) == f"{tmp_path / 'config.json'}: is missing"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert refused(tmp_path) == f"{tmp_path / 'model.safetensors'}: is missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"model_type": }', "config.json:2: not valid JSON"),
        ("[]", "config.json:1: must be a JSON object"),
        ("{}", "model_type: unknown None (allowed: dtrain-bilstm, dtrain-textcnn, dtrain-text_rcnn,"),
        ('{"model_type": "dtrain-textcn"}', "unknown 'dtrain-textcn'; did you mean 'dtrain-textcnn'?"),
        ('{"model_type": ["bert"]}', "model_type: unknown ['bert']"),
        ('{"model_type": "dtrain-bilstm"}', "config.json: id2label: is missing"),
    ],
)
def test_bad_configs(text: str, message: str, tmp_path: Path) -> None:
    save_model(make("textcnn"), tmp_path, None, "card")
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert message in refused(tmp_path)


def test_config_with_bad_values(tmp_path: Path) -> None:
    save_model(make("bilstm"), tmp_path, None, "card")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for key, value, message in [
        ("pooling", "sum", "pooling: unknown 'sum' (allowed: final, max, mean)"),
        ("hidden", "wide", "describes no dtrain-bilstm model"),
        ("hidden", -1, "describes no dtrain-bilstm model"),
        ("id2label", ["a"], "describes no dtrain-bilstm model"),
        ("layers", 1, "lstm.bias_hh_l1: is no weight of the model that config.json describes"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}), encoding="utf-8")
        assert message in refused(tmp_path)


@pytest.mark.parametrize("kind", SPECS)
def test_weights_that_do_not_fit(kind: str, tmp_path: Path) -> None:
    save_model(make(kind), tmp_path, None, "card")
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    without = {name: tensor for name, tensor in whole.items() if not name.startswith("classifier")}
    save_file(without, path, metadata={"format": "pt"})
    assert refused(tmp_path) == f"{path}: classifier.bias: is missing"
    save_file(whole | {"classifier.weight": torch.zeros(3, 3)}, path, metadata={"format": "pt"})
    expected = list(whole["classifier.weight"].shape)
    assert refused(tmp_path) == f"{path}: classifier.weight: has shape [3, 3], config.json says {expected}"
    save_file(whole | {"extra": torch.zeros(1)}, path, metadata={"format": "pt"})
    assert refused(tmp_path) == f"{path}: extra: is no weight of the model that config.json describes"
    path.write_bytes(path.read_bytes()[:-5])
    assert f"{path}: damaged" in refused(tmp_path)


def test_fingerprint_sees_names_types_shapes_and_bytes() -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1, dtype=torch.int64)}
    variants = [
        base,
        {"a": base["a"], "c": base["b"]},
        base | {"a": base["a"].reshape(3, 2)},
        base | {"a": base["a"].to(torch.bfloat16)},
        base | {"b": torch.tensor(1, dtype=torch.int32)},
        base | {"a": base["a"] + torch.finfo(torch.float32).eps * torch.ones(2, 3)},
    ]
    assert len({weights_fingerprint(variant) for variant in variants}) == len(variants)
    assert weights_fingerprint(dict(reversed(base.items()))) == weights_fingerprint(base)
    assert weights_fingerprint({"a": base["a"].T.contiguous().T, "b": base["b"]}) == weights_fingerprint(base)
    expected = hashlib.sha256(b"w\0torch.float32\0[2]\0" + torch.tensor([1.0, 2.0]).numpy().tobytes())
    assert weights_fingerprint({"w": torch.tensor([1.0, 2.0])}) == expected.hexdigest()


def test_parameter_count_takes_shared_weights_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert parameter_count(model) == 24
    model[1].weight = model[0].weight
    assert parameter_count(model) == 15


def test_a_transformer_is_written_by_whichever_rank_trained_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers writes on rank 0 only."""
    from transformers.distributed import mixin

    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    spec = BertSpec.model_validate({"type": "bert", "hidden": 8, "layers": 1, "heads": 2})
    model = build(spec, vocabulary=20, labels=["a", "b"], pad_id=0)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    save_model(model, tmp_path / "m", tokenizer, "card")
    assert weights_fingerprint(load(tmp_path / "m")) == weights_fingerprint(model)

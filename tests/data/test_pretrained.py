"""What `dtrain check` sees of a pretrained folder: everything that config, tokenizer and the safetensors header tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from dtrain.__main__ import main
from dtrain.data.pretrained import check_pretrained
from dtrain.recipe.architectures.transformers import BertSpec, NezhaSpec

KEY = "t: model.pretrained"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "vocab.txt").write_text("".join(f"token{n}\n" for n in range(40)))
    return tmp_path / "m"


def problems(folder: Path, max_length: int = 64) -> list[str]:
    found = check_pretrained(BertSpec(type="bert", pretrained=str(folder)), KEY, max_length)
    assert all(problem.startswith(f"{KEY}: {folder}") and "\n" not in problem for problem in found)
    return found


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_whole_folder_and_hub_names_pass(folder: Path) -> None:
    assert problems(folder) == []
    assert check_pretrained(BertSpec(type="bert", pretrained="sijunhe/nezha-cn-base"), KEY, 64) == []
    assert check_pretrained(BertSpec(type="bert"), KEY, 64) == []


def test_no_model_comes_with_the_package() -> None:
    (problem,) = check_pretrained(BertSpec(type="bert", pretrained="package:bert"), KEY, 64)
    assert problem.startswith(f"{KEY}: package:bert: `package:` is for data files that come with dtrain")


def test_more_tokens_than_embeddings(folder: Path) -> None:
    with (folder / "vocab.txt").open("a") as file:
        file.write("one more\n")
    (problem,) = problems(folder)
    assert "has 40 token embeddings, but its tokenizer has 41 tokens" in problem
    vocabulary = {f"t{n}": n for n in range(40)}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 45, "content": "new"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "tokenizer has 46 tokens" in problems(folder)[0]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": [{"id": 3, "content": "t3"}]}))
    assert problems(folder) == []


def test_too_few_positions(folder: Path) -> None:
    (problem,) = problems(folder, max_length=65)
    assert "has 64 positions, fewer than data.max_length, 65; set that to 64 or less" in problem
    change(folder, model_type="nezha")
    assert problems(folder, max_length=65) == []


def test_weights_that_are_missing_damaged_or_another_models(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"nothing", whole[:-8], whole[:100], whole + b"x", b"\xff" * 50):
        (folder / "model.safetensors").write_bytes(content)
        (problem,) = problems(folder)
        assert "model.safetensors is damaged" in problem
    (folder / "model.safetensors").write_bytes(whole)
    change(folder, num_hidden_layers=3)
    assert "config.json says 3 layers, and model.safetensors lacks the last one's weights" in problems(folder)[0]
    change(folder, num_hidden_layers=2, vocab_size=50)
    assert "config.json says 50 tokens, and model.safetensors has embeddings of 40" in problems(folder)[0]
    (folder / "model.safetensors").unlink()
    assert "holds no model.safetensors" in problems(folder)[0]


def test_a_weight_that_is_missing_within_a_layer_and_other_sizes(folder: Path) -> None:
    """The header tells what finetune found after prepare."""
    weights = load_file(folder / "model.safetensors")
    dense = weights.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors")
    (problem,) = problems(folder)
    assert problem.endswith("model.safetensors lacks encoder.layer.1.output.dense.weight")
    del weights["bert.encoder.layer.0.output.dense.bias"]
    save_file(weights, folder / "model.safetensors")
    (problem,) = problems(folder)
    assert problem.endswith("lacks encoder.layer.0.output.dense.bias and 1 more weight(s)")
    weights |= {
        "bert.encoder.layer.1.output.dense.weight": dense,
        "bert.encoder.layer.0.output.dense.bias": torch.zeros(16),
    }
    save_file(weights, folder / "model.safetensors")
    assert problems(folder) == []
    change(folder, intermediate_size=64, hidden_size=32)
    assert sorted(problem.removeprefix(f"{KEY}: {folder}: config.json says ") for problem in problems(folder)) == [
        "32 features, and model.safetensors has embeddings with 16",
        "64 features between, and model.safetensors has 32",
    ]


def test_no_vocabulary(folder: Path) -> None:
    """transformers makes a tokenizer without a word, and every text was read as unknown tokens."""
    (folder / "vocab.txt").unlink()
    (problem,) = problems(folder)
    assert "holds no vocabulary (allowed: tokenizer.json, vocab.txt" in problem
    (folder / "spiece.model").touch()
    assert problems(folder) == []


def test_shards_are_read_by_their_index(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert problems(folder) == []
    (folder / "model-2.safetensors").unlink()
    assert "No such file" in problems(folder)[0]


def test_configs_that_are_none(folder: Path) -> None:
    for text, expected in (("{", "not valid JSON"), ("[]", "must be a JSON object")):
        (folder / "config.json").write_text(text)
        assert expected in problems(folder)[0]


def test_heads_of_an_odd_size() -> None:
    """Traceback in finetune before: NEZHA's positions are sines and cosines in pairs."""
    with pytest.raises(ValidationError, match="3 heads of a hidden size of 15 have 5 numbers each"):
        NezhaSpec(type="nezha", hidden=15, heads=3)
    NezhaSpec(type="nezha", hidden=18, heads=3)
    BertSpec(type="bert", hidden=15, heads=3)


def test_heads_of_an_odd_size_in_a_folder(folder: Path) -> None:
    change(folder, model_type="nezha", num_attention_heads=16)
    assert "hidden_size 16 and 16 heads: a NEZHA's heads have an even size" in problems(folder)[0]


def test_the_command_refuses_what_it_can_know(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vec.txt").write_text("a 0.1 0.2\nb 0.3 oops\n")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (tmp_path / "r.yaml").write_text(f"""
name: bad
output_dir: {tmp_path}/runs
data: {{train: {tmp_path}/rows.jsonl, valid: {tmp_path}/rows.jsonl}}
teachers: [{{name: t, model: {{type: bert, pretrained: {folder}}}}}]
students: [{{name: s, model: {{type: bilstm, embedding: 2, vectors: {tmp_path}/vec.txt}}}}]
""")
    assert main(["check", str(tmp_path / "r.yaml")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3, lines
    text = "\n".join(lines)
    assert f"t: model.pretrained: {folder} has pickled weights only (pytorch_model.bin)" in text
    assert "has 64 positions, fewer than data.max_length, 128" in text
    assert f"s: model.vectors: {tmp_path}/vec.txt:2: could not convert string to float: 'oops'" in text
    assert not (tmp_path / "runs").exists()

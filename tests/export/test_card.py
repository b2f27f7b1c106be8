"""The card of an exported model: what a hub reads of it, and what it keeps of the card of the model it was made from."""

from __future__ import annotations

from pathlib import Path

import yaml

from dtrain.data.preprocessing import write_preprocessing
from dtrain.export.card import add_check, card_of
from dtrain.predict.folder import read_folder
from dtrain.recipe.data import Data

OWN = """---
library_name: dtrain
language: "zh"
pipeline_tag: text-classification
---
# small

- labels: a, b
- teachers: bert
- validation rows: 100, accuracy 0.8400 (the best of the evaluations)
- data: train train.tsv
- input: normalised (simplify), at most 128 tokens
- speed: `dtrain report` measures it beside the other models
- licence: not given; it is for whoever trained the model, and owns its data, to say
"""
SETTINGS = {"labels": ["a", "b"], "graphs": ["graph.onnx"]}


def card(folder: Path, task: str) -> str:
    write_preprocessing(
        folder, Data.model_validate({"task": task, "train": "train.tsv", "columns": {"text_b": "b"}}), {}
    )
    return card_of("small", "onnx", True, read_folder(folder), SETTINGS, 1234)


def test_it_keeps_what_the_model_s_own_card_says(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(OWN, encoding="utf-8")
    text = card(tmp_path, "pairs")
    head = {"library_name": "onnxruntime", "language": "zh", "pipeline_tag": "text-classification"}
    assert yaml.safe_load(text.split("---\n")[1]) == head
    assert "onnx, int8, 1,234 bytes" in text and 'Model()(["a text"], ["its partner"])' in text
    kept = text.split("The model that it was made from:\n\n")[1].splitlines()
    assert [line.partition(":")[0] for line in kept] == ["- teachers", "- validation rows", "- data"]
    assert all(text.count(f"- {word}:") == 1 for word in ("labels", "speed", "licence"))
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    add_check(tmp_path, "on 100 validation rows 1 answers differ")
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith(text)


def test_a_model_without_a_card_and_one_whose_head_is_no_yaml(tmp_path: Path) -> None:
    without = card(tmp_path, "pairs")
    assert "made from" not in without and "language" not in without
    for own in ("a card", "---\n: [\n---\n", "---\nlanguage: 3\n---\n", "---"):
        (tmp_path / "README.md").write_text(own, encoding="utf-8")
        assert card(tmp_path, "pairs") == without

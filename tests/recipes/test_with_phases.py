"""Shipped recipes of students with phases, run whole on a few rows with models of the same layers and next to no width."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from dtrain.recipe import load_recipe, shipped_recipes
from dtrain.runfolder import read_json
from tests.here import dtrain_here
from tests.recipes.test_between_layers import titles

SMALLER = (
    (r"pretrained: bert-base-chinese", "pretrained: encoder"),
    (r"hidden: (768|312|256), heads: \d+", "hidden: 24, heads: 12"),
    (r"hidden: 768\n      heads: 12", "hidden: 24\n      heads: 12\n      intermediate: 24"),
    (r"intermediate: 1200", "intermediate: 24"),
    (r"corpus:\n", "corpus:\n  held_out: 0.2\n"),
    (r"max_length: 128", "max_length: 16"),
    (r"batch_size: \d+", "batch_size: 16"),
    (r"accumulation: 8", "accumulation: 2"),
    (r"epochs: \d+", "epochs: 1"),
    (r"seed: \[1, 2, 3\]", "seed: [1]"),
    (r"processes: auto", "processes: 1"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Titles, plain text, and an encoder of 12 layers with its masked-token head."""
    titles(tmp_path)
    (tmp_path / "data/tnews/test.json").write_text(json.dumps({"sentence": "球球球球球"}) + "\n")
    draw = random.Random(1)
    reviews = ["".join(draw.choices("球赛队员股票银行的了，。", k=draw.randint(8, 30))) for _ in range(40)]
    (tmp_path / "data/text").mkdir()
    (tmp_path / "data/text/reviews.txt").write_text("\n".join(reviews), encoding="utf-8")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"球赛队员股票银行的了，。"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    shape = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 24}
    BertForMaskedLM(BertConfig(vocab_size=len(words), **shape)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path


@pytest.mark.parametrize("name", ["distilbert", "tinybert", "fitnets"])
def test_it_runs_whole(name: str, folder: Path) -> None:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    for pattern, replaced in SMALLER:
        text = re.sub(pattern, replaced, text)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    dtrain_here("run", f"{name}.yaml", "--here", "report.latency=false", folder=folder)
    run = folder / "runs" / name
    for student in load_recipe(name).students:
        if not student.name.endswith("-seed1"):
            continue
        assert (run / "students" / student.name / "model.safetensors").is_file()
        found = read_json(run / "students" / student.name / "metrics.json").get("phases", [])
        assert [phase["name"] for phase in found] == [phase.name for phase in student.phases or []]
        assert [phase["rows"] for phase in found] == [phase.rows for phase in student.phases or []]
    assert "## Phases of students" in (run / "report/report.md").read_text(encoding="utf-8")
    if name == "fitnets":
        first = load_file(run / "phases/fitnet-seed1/1-hint/model.safetensors")
        last = load_file(run / "students/fitnet-seed1/model.safetensors")
        trained = read_json(run / "phases/fitnet-seed1/1-hint/metrics.json")["trained_parameters"]
        up_to = [tensor.numel() for key, tensor in first.items() if re.search(r"embeddings|layer\.[0-5]\.", key)]
        assert trained == sum(up_to)
        assert not all((first[key] == last[key]).all() for key in first if "layer.11." in key)

"""A small text to pre-train on, and a recipe over it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.losses.objective import Losses, Objective
from dtrain.recipe import load_recipe
from dtrain.recipe.schema import Recipe
from dtrain.tasks.masked_lm.rows import MaskedRows
from dtrain.tasks.masked_lm.task import MaskedLanguageModel, MaskedLosses

WORDS = [
    "球队",
    "比赛",
    "进球",
    "冠军",
    "好吃",
    "餐厅",
    "美味",
    "火锅",
    "股票",
    "基金",
    "银行",
    "手机",
    "iphone",
    "windows",
]


def loss_of(rows: MaskedRows, model: torch.nn.Module, index: np.ndarray) -> Losses:
    """The loss of the rows at `index` in the step under way, as training computes it."""
    task = MaskedLanguageModel(rows.masker, separate=rows.separate)
    return Objective(model, MaskedLosses(), task.outputs)(task.collate(rows, index))  # type: ignore[arg-type]


@pytest.fixture
def text_files(tmp_path: Path) -> Path:
    """text.txt: 80 lines; books.txt: 6 documents of several lines; rows.jsonl, labelled rows; valid.jsonl."""
    draw = random.Random(0)

    def sentence(low: int, high: int) -> str:
        return "".join(draw.choice(WORDS) for _ in range(draw.randint(low, high))) + draw.choice("。！")

    lines = [sentence(4, 12) for _ in range(80)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    books = ["\n".join(sentence(5, 9) + sentence(3, 8) for _ in range(6)) for _ in range(6)]
    (tmp_path / "books.txt").write_text("\n\n".join(books) + "\n", encoding="utf-8")
    rows = [{"text": sentence(3, 6), "label": "ab"[n % 2]} for n in range(40)]
    for name, part in (("rows.jsonl", rows[:30]), ("valid.jsonl", rows[30:])):
        dumped = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (tmp_path / name).write_text("".join(dumped), encoding="utf-8")
    return tmp_path


@pytest.fixture
def recipe_of(text_files: Path) -> Callable[..., Recipe]:
    """A recipe with these changes, loaded as the command line would."""

    def load(pretrain: dict[str, Any] | None = None, corpus: dict[str, Any] | None = None, **top: Any) -> Recipe:
        section = {
            "model": {"type": "nezha", "size": "tiny", "hidden": 16, "heads": 2, "vocabulary_size": 150},
            "corpus": {"sources": [{"path": str(text_files / "text.txt"), "documents": "line"}], "held_out": 0.2}
            | (corpus or {}),
            "phases": [{"max_length": 16}, {"max_length": 32}],
        }
        data = {"train": str(text_files / "rows.jsonl"), "valid": str(text_files / "valid.jsonl")}
        values = {
            "name": "run",
            "output_dir": str(text_files / "runs"),
            "data": data,
            "pretrain": section | (pretrain or {}),
        }
        (text_files / "recipe.yaml").write_text(json.dumps(values | top, ensure_ascii=False), encoding="utf-8")
        return load_recipe(str(text_files / "recipe.yaml"))

    return load

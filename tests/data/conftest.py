"""A small corpus and a recipe over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder
from dtrain.stages.prepare import prepare

STUDENT = {"name": "lstm", "model": {"type": "bilstm"}}


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[str, list[Any]], str]:
    """Write rows as JSON lines into a file of the test's folder; returns its path."""

    def write(name: str, rows: list[Any]) -> str:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def corpus(tmp_path: Path, jsonl: Callable[[str, list[Any]], str]) -> dict[str, Any]:
    """A data section over 40 training rows of two labels, 10 validation rows, 6 unlabelled test and 5 transfer."""
    rows = [{"text": f"第{n}条，說明文字 ABC{n % 7}", "label": ["新闻", "体育"][n % 2]} for n in range(56)]
    (tmp_path / "more.txt").write_text("".join(f"无标签 {n}\n" for n in range(5)), encoding="utf-8")
    return {
        "train": jsonl("train.jsonl", rows[:40]),
        "valid": jsonl("valid.jsonl", rows[40:50]),
        "test": jsonl("test.jsonl", [{"text": row["text"]} for row in rows[50:]]),
        "transfer": str(tmp_path / "more.txt"),
        "vocabulary": {"min_count": 1},
        "max_length": 32,
    }


@pytest.fixture
def prepare_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Prepare a data section under fixed identities; returns the run folder."""

    def run(
        data: dict[str, Any],
        teachers: tuple[dict[str, Any], ...] = (),
        students: tuple[dict[str, Any], ...] = (STUDENT,),
        identities: dict[str, str] | None = None,
        seed: int = 0,
    ) -> RunFolder:
        recipe = Recipe.model_validate(
            {
                "name": "run",
                "seed": seed,
                "data": data,
                "teachers": list(teachers),
                "students": list(students),
            }
        )
        names = identities or {}
        folder = RunFolder(tmp_path / "runs" / "run")
        prepare(recipe, folder, names.get("rows", "rows-1"), lambda name: names.get(name, f"{name}-1"))
        return folder

    return run

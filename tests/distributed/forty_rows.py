"""A recipe of two labels and forty rows, for tests that watch how processes end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = '{"text": "abc", "label": "x"}\n{"text": "bcd", "label": "y"}\n' * 20


def write(folder: Path, recipe: dict[str, Any], name: str = "recipe.yaml") -> Path:
    """Write the recipe and its `train.jsonl` into the folder; commands must be started there."""
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text(ROWS)
    (folder / name).write_text(json.dumps(recipe))
    return folder

"""`label_desc` of a CLUE submission comes from the recipe's files, as these are read for training."""

import gzip
import json
from pathlib import Path

from dtrain.recipe.data import Data
from dtrain.tasks.classification.answers import label_descriptions

LINES = "".join(
    json.dumps({"sentence": f"文{n}", "label": str(n), "label_desc": f"新闻{n}"}, ensure_ascii=False) + "\n"
    for n in range(2)
)
WANTED = {"0": "新闻0", "1": "新闻1"}


def section(train: Path, **more: object) -> Data:
    return Data.model_validate({"train": str(train), "columns": {"text": "sentence", "label": "label"}, **more})


def test_the_encoding_is_that_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(LINES, encoding="gb18030")
    assert label_descriptions(section(tmp_path / "train.json", encoding="gb18030")) == WANTED


def test_patterns_folders_and_packed_files(tmp_path: Path) -> None:
    (tmp_path / "part-0.json").write_text(LINES, encoding="utf-8")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    for train in (tmp_path / "part-*.json", tmp_path, tmp_path / "packed", tmp_path / "packed" / "train.jsonl.gz"):
        assert label_descriptions(section(train)) == WANTED
    assert label_descriptions(section(tmp_path / "gone-*.json")) == {}

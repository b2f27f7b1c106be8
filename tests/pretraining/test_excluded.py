"""Texts of validation and test files are found in whatever format they lie; also end to end, for a quoted CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from dtrain.data.normalize import Normalizer
from dtrain.errors import InputError
from dtrain.pretraining import prepare
from dtrain.pretraining.excluded import excluded_sources, excluded_texts
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder

Load = Callable[..., Recipe]
TEXT = "球队进球，冠军！"
COMMA = 'one, "two", three'


def as_csv(folder: Path) -> Path:
    path = folder / "held.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["label", "text"], ["a", TEXT], ["b", COMMA]])
    return path


def as_dataset(folder: Path) -> Path:
    path = folder / "held"
    datasets.Dataset.from_dict({"text": [TEXT, COMMA], "label": ["a", "b"]}).save_to_disk(path)
    return path


def as_tokens(folder: Path) -> Path:
    path = folder / "held.jsonl"
    rows = [{"tokens": list(TEXT), "n": 1}, {"tokens": COMMA.split(" "), "inside": {"deep": None}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_table(folder: Path) -> Path:
    path = folder / "held.tsv"
    path.write_text(f"a\t{TEXT}\nb\t{COMMA}\n", encoding="utf-8")
    return path


def as_lines(folder: Path) -> Path:
    path = folder / "held"  # no suffix: plain lines
    path.write_text(f"{TEXT}\n{COMMA}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("write", [as_csv, as_dataset, as_tokens, as_table, as_lines])
def test_every_format_is_read(recipe_of: Load, tmp_path: Path, write: Callable[[Path], Path]) -> None:
    recipe = recipe_of(corpus={"exclude": [str(write(tmp_path))]})
    normalizer = Normalizer(recipe.data.normalize)
    found = excluded_texts(excluded_sources(recipe), normalizer)
    assert {normalizer(TEXT), normalizer(COMMA)} <= found and "" not in found


def test_a_taggers_validation_file(recipe_of: Load, tmp_path: Path) -> None:
    path = tmp_path / "dev.conll"
    tagged = "".join(f"{character}\tO\n" for character in "球队进球") + "\n" + "New\tB-LOC\nYork\tI-LOC\n\n"
    path.write_text(tagged, encoding="utf-8")
    recipe = recipe_of(data={"task": "tagging", "train": str(path), "valid": str(path)})
    assert {"球队进球", "new york"} <= excluded_texts(excluded_sources(recipe), Normalizer(recipe.data.normalize))


def test_rows_of_a_quoted_table_stay_out(recipe_of: Load, text_files: Path) -> None:
    """Its lines hold quotes and a label: neither they nor fields between tabs are the text."""
    with (text_files / "text.txt").open("a", encoding="utf-8") as file:
        file.write(f"{COMMA}\n{TEXT}\n")
    for part in ("rows", "valid"):
        rows = [("text", "label"), (COMMA, "a"), (f"{part} alone", "b")]
        with (text_files / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    data = {"train": str(text_files / "rows.csv"), "valid": str(text_files / "valid.csv")}
    folder = RunFolder(text_files / "out")
    prepare.prepare_corpus(recipe_of(data=data), folder, "x")
    info = json.loads((folder.data / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    assert info["excluded_lines"] == 1 and info["documents"] == 81


def test_what_cannot_be_read_is_told(recipe_of: Load, tmp_path: Path) -> None:
    folder = as_dataset(tmp_path)
    next(folder.glob("*.arrow")).write_bytes(b"x")
    recipe = recipe_of(corpus={"exclude": [str(folder)]})
    with pytest.raises(InputError, match=r"pretrain\.corpus\.exclude: .*held: cannot be read"):
        excluded_texts(excluded_sources(recipe), Normalizer(recipe.data.normalize))
    with pytest.raises(InputError, match=r"pretrain\.corpus\.exclude: .*: is a folder, not a file"):
        excluded_sources(recipe_of(corpus={"exclude": [str(tmp_path)]}))

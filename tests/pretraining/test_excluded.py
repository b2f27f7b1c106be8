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
from dtrain.plan import Plan
from dtrain.pretraining import prepare
from dtrain.pretraining.excluded import excluded_sources, excluded_texts
from dtrain.recipe.schema import Recipe
from dtrain.runfolder import RunFolder
from dtrain.tasks.corpus import read_corpus

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


def as_array(folder: Path) -> Path:
    path = folder / "held.json"
    path.write_text(json.dumps([{"text": TEXT}, {"inside": [{"text": COMMA}]}], indent=1), encoding="utf-8")
    return path


def as_ragged_csv(folder: Path) -> Path:
    path = as_csv(folder)
    path.write_text("only one\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def as_bmes(folder: Path) -> Path:
    """A tagger's file by any other suffix; the token in the second column."""
    path = folder / "held.char.bmes"
    rows = [[f"{n} {c} O" for n, c in enumerate(tokens)] for tokens in (list(TEXT), COMMA.split(" "))]
    path.write_text("\n\n".join("\n".join(row) for row in rows), encoding="utf-8")
    return path


def as_long_rows(folder: Path) -> Path:
    """Of a text of several lines, each is kept out."""
    path = folder / "held.jsonl"
    row = json.dumps({"text": f"a\r\n{TEXT}\n{COMMA}"})
    path.write_text(f"{row}\n{row}\n", encoding="utf-8")
    return path


WAYS = [as_csv, as_ragged_csv, as_dataset, as_tokens, as_table, as_lines, as_array, as_bmes, as_long_rows]


@pytest.mark.parametrize("write", WAYS)
def test_every_format_is_read(recipe_of: Load, tmp_path: Path, write: Callable[[Path], Path]) -> None:
    recipe = recipe_of(corpus={"exclude": [str(write(tmp_path))]})
    normalizer = Normalizer(recipe.data.normalize)
    found = excluded_texts(recipe, normalizer)
    assert {normalizer(TEXT), normalizer(COMMA)} <= found and "" not in found


def test_a_taggers_validation_file(recipe_of: Load, tmp_path: Path) -> None:
    path = tmp_path / "dev.conll"
    tagged = "".join(f"{character}\tO\n" for character in "球队进球") + "\n" + "New\tB-LOC\nYork\tI-LOC\n\n"
    path.write_text(tagged, encoding="utf-8")
    recipe = recipe_of(data={"task": "tagging", "train": str(path), "valid": str(path)})
    assert {"球队进球", "new york"} <= excluded_texts(recipe, Normalizer(recipe.data.normalize))


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


def test_rows_that_a_split_cuts_off_stay_out(recipe_of: Load, text_files: Path) -> None:
    """The corpus is the training file itself: as many documents as rows are left to train on."""
    corpus = {"sources": [{"path": str(text_files / "rows.jsonl")}], "held_out": 0.4}
    data = {"train": str(text_files / "rows.jsonl"), "split": {"valid": 0.2, "test": 0.1}}
    recipe = recipe_of(corpus=corpus, data=data)
    folder = RunFolder(text_files / "out")
    prepare.prepare_corpus(recipe, folder, "x")
    info = json.loads((folder.data / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    parts = read_corpus(recipe.data, recipe.seed).parts
    cut = {text for part in ("valid", "test") for text in parts[part].text}
    kept = [text for text in parts["train"].text if text not in cut]  # the same text can be on both sides
    assert info["documents"] == len(kept) and info["excluded_lines"] == 30 - len(kept) >= 9
    again = recipe_of(corpus=corpus, data=data, seed=recipe.seed + 1)
    assert Plan(again).corpus != Plan(recipe).corpus


def test_a_file_that_nothing_can_be_read_of_keeps_nothing_out_and_is_told(recipe_of: Load, tmp_path: Path) -> None:
    (tmp_path / "gbk.txt").write_bytes(f"{TEXT}\n".encode("gbk"))
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    recipe = recipe_of(corpus={"exclude": [str(tmp_path / "gbk.txt")]})
    with pytest.raises(InputError, match=r"gbk\.txt:1: not valid UTF-8"):
        excluded_texts(recipe, Normalizer(recipe.data.normalize))
    recipe = recipe_of(corpus={"exclude": [str(tmp_path / "blank.txt")]})
    with pytest.raises(InputError, match=r"pretrain\.corpus\.exclude: .*blank\.txt: holds no text"):
        excluded_texts(recipe, Normalizer(recipe.data.normalize))


def test_what_cannot_be_read_is_told(recipe_of: Load, tmp_path: Path) -> None:
    folder = as_dataset(tmp_path)
    next(folder.glob("*.arrow")).write_bytes(b"x")
    recipe = recipe_of(corpus={"exclude": [str(folder)]})
    with pytest.raises(InputError, match=r"pretrain\.corpus\.exclude: .*held: cannot be read"):
        excluded_texts(recipe, Normalizer(recipe.data.normalize))
    with pytest.raises(InputError, match=r"pretrain\.corpus\.exclude: .*: is a folder, not a file"):
        excluded_sources(recipe_of(corpus={"exclude": [str(tmp_path)]}))

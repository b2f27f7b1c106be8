"""The real data sets: rows, labels, entities and their places are what they were when this was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.recipe.data import Data
from dtrain.tasks.corpus import read_corpus

NUMBERED = {"format": "tsv", "header": False}
PAIRS = {"task": "pairs", **NUMBERED, "columns": {"text": 0, "text_b": 1, "label": 2}}
# The section, and the beginning of the digest of all that is read by it with seed 0.
SETS: dict[str, tuple[dict[str, Any], str]] = {
    "tnews": ({"train": "tnews/train.json", "valid": "tnews/dev.json", "test": "tnews/test.json", "transfer": "tnews/transfer.txt", "labels": "tnews/labels.json", "columns": {"text": "sentence"}}, "9bd5df6c567a81a9"),
    "thucnews": ({"train": "thucnews/train45k.txt", "valid": "thucnews/dev.txt", "test": "thucnews/test.txt", **NUMBERED, "columns": {"text": 0, "label": 1}}, "d5a0e8bab3f30c5d"),
    "sst2": ({"train": "sst2/train.tsv", "valid": "sst2/dev.tsv", "test": "sst2/test-labeled.tsv", "columns": {"text": "sentence"}}, "e115d2904b5c6ca6"),
    "fruit": ({"train": "reviews_distill/fruit/train.txt", "test": "reviews_distill/fruit/test.txt", **NUMBERED, "columns": {"text": 1, "label": 0}}, "039e2c39208edb2e"),
    "resume": ({"task": "tagging", "train": "resume_ner/train.char.bmes", "valid": "resume_ner/dev.char.bmes", "test": "resume_ner/test.char.bmes"}, "655c6e049cde9d2a"),
    "cluener": ({"task": "tagging", "train": "cluener/train.jsonl", "valid": "cluener/dev.jsonl"}, "07c546766fe6ec33"),
    "amazon": ({"train": "amazon_en/books.train.jsonl", "valid": "amazon_en/books.dev.jsonl", "test": "amazon_en/books.test.jsonl"}, "5c07a326ba2d5965"),
    "shopping": ({"train": "online_shopping/books.jsonl", "transfer": "text/reviews.txt"}, "520ea9268abaad21"),
    "afqmc": ({**PAIRS, "train": "afqmc/train.txt", "valid": "afqmc/dev.txt", "test": "afqmc/test.txt"}, "e050db45311ba530"),
    "mrpc": ({"task": "pairs", "train": "mrpc/train.tsv", "valid": "mrpc/dev.tsv", "columns": {"text": "#1 String", "text_b": "#2 String", "label": "Quality"}}, "f73fc9439da93bfd"),
    "rte": ({"task": "pairs", "train": "rte/train.tsv", "valid": "rte/dev.tsv", "columns": {"text": "sentence1", "text_b": "sentence2", "id": "index"}}, "fa880b1a9aa05a0d"),
    "stsb": ({"task": "pairs", "train": "stsb/train.tsv", "columns": {"text": "sentence1", "text_b": "sentence2", "label": "genre"}}, "5f531a120db6b166"),
    "captions": ({**PAIRS, "train": "afqmc/train.txt", "transfer": "captions_en_zh/train.tsv"}, "8e601bcc634f0b9f"),
    "tatoeba": ({"train": "thucnews/dev.txt", "transfer": "parallel_en_zh/tatoeba_cmn.txt", **NUMBERED, "columns": {"text": 0, "label": 1}}, "8703682a115acf62"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_read_as_before(name: str, data_folder: Path) -> None:
    section, expected = SETS[name]
    files = {
        part: str(data_folder / section[part]) for part in ("train", "valid", "test", "transfer") if part in section
    }
    labels = {"labels": str(data_folder / section["labels"])} if "labels" in section else {}
    corpus = read_corpus(Data.model_validate({**section, **files, **labels}), seed=0)
    digest = hashlib.sha256()
    for part, rows in corpus.parts.items():
        kept = (rows.text, rows.text_b, rows.spans, rows.key, rows.line)
        columns = [*map(list, kept), corpus.numbers[part].tolist()]
        digest.update(json.dumps([part, *columns]).encode())
    digest.update(json.dumps(corpus.labels).encode())
    assert digest.hexdigest().startswith(expected)

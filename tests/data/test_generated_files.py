"""A thousand well-formed files of every format and many dialects: none is refused, each gives what was written."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dtrain.data.schemes import SCHEMES, Span, write_tags
from dtrain.recipe.data import Data
from dtrain.tasks.corpus import read_corpus

FILES = 1000
LETTERS = "字体育财经新闻很好张三李四abcXYZ019 ，。！？,.;:|'\"-_(){}[]\\/\u3000é\u2028😀"
LABELS = ["体育", "财经", "a b", "7", "x;y"]
Made = tuple[str, bytes, dict[str, Any], list[Any]]  # suffix, content, keys of the section, what must be read


def words(random: Random, most: int = 12) -> str:
    return "".join(random.choice(LETTERS) for _ in range(random.randrange(most + 1)))


def texts(random: Random, **replaced: str) -> list[tuple[str, str]]:
    """Rows of a text and a label, two labels at least; characters of `replaced` are none of them."""
    table = str.maketrans(replaced)
    labels = random.sample(LABELS, random.randrange(2, len(LABELS)))
    rows = [(words(random).translate(table), label.translate(table)) for label in labels]
    return rows + [
        (words(random).translate(table), random.choice(labels).translate(table)) for _ in range(random.randrange(8))
    ]


def json_lines(random: Random) -> Made:
    rows = texts(random)
    ascii_only, end = random.random() < 0.5, random.choice(["\n", "\r\n", "\n\n"])
    lines = [json.dumps({"n": None, "label": b, "text": a}, ensure_ascii=ascii_only) for a, b in rows]
    return random.choice([".jsonl", ".json"]), end.join(lines).encode(), {}, rows


def plain_table(random: Random) -> Made:
    """Quotes are text here; what separates columns is not in them."""
    separator, named = random.choice([("\t", "tab"), ("|", "|"), (";", ";")])
    rows = texts(random, **{separator: "_"})
    header = random.random() < 0.5
    lines = [f"{label}{separator}{text}" for text, label in rows]
    # A .tsv is separated by tabs where nothing is said.
    keys: dict[str, Any] = {} if named == "tab" else {"delimiter": named}
    if header:
        lines.insert(0, f"label{separator}text")
    else:
        keys |= {"header": False, "columns": {"text": 1, "label": 0}}
    return ".tsv", (random.choice(["\n", "\r\n"]).join(lines) + "\n").encode(), keys, rows


def quoted_table(random: Random) -> Made:
    rows = texts(random)
    separator, named = random.choice([(",", "auto"), (";", ";"), ("\t", "tab")])
    file = io.StringIO()
    writer = csv.writer(
        file,
        delimiter=separator,
        quoting=random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        lineterminator=random.choice(["\n", "\r\n"]),
    )
    broken = [(f"{text}\n{words(random)}" if random.random() < 0.3 else text, label) for text, label in rows]
    broken = [(text or "空", label) for text, label in broken]
    writer.writerow(["id", "text", "label"])
    writer.writerows([n, *row] for n, row in enumerate(broken))
    encoding = random.choice(["utf-8", "utf-8-sig", "utf-16"])
    keys = {"delimiter": named, "encoding": encoding.removesuffix("-sig"), "columns": {"id": "id"}}
    return ".csv", file.getvalue().encode(encoding), keys, broken


def entities(random: Random) -> tuple[str, list[Span]]:
    spans, position = [], 0
    for _ in range(random.randrange(1, 4)):
        start = position + random.randrange(3)
        position = start + random.randrange(1, 4)
        spans.append(Span(start, position, random.choice("XY")))
    length = position + random.randrange(3)
    return "".join(random.choice("字张三在北京a1，") for _ in range(length)), spans


def tags(random: Random) -> Made:
    scheme, separator = random.choice(sorted(SCHEMES)), random.choice([" ", "\t", " _ "])
    rows = [entities(random) for _ in range(random.randrange(1, 8))]
    blocks = [
        "".join(
            f"{character}{separator}{tag}\n"
            for character, tag in zip(text, write_tags(spans, len(text), scheme), strict=True)
        )
        for text, spans in rows
    ]
    return ".bio", "\n".join(blocks).encode(), {"task": "tagging"}, rows


def spans(random: Random) -> Made:
    inclusive, surfaces = random.random() < 0.5, random.random() < 0.5
    rows = [entities(random) for _ in range(random.randrange(1, 8))]
    lines = []
    for text, found in rows:
        listed = [
            {"start": s.start, "end": s.end - inclusive, "type": s.type}
            | ({"text": text[s.start : s.end]} if surfaces else {})
            for s in found
        ]
        lines.append(json.dumps({"text": text, "label": listed}, ensure_ascii=False))
    keys: dict[str, Any] = {"task": "tagging"}
    if not surfaces:
        keys["columns"] = {"span_end": "inclusive" if inclusive else "exclusive"}
    return ".jsonl", "\n".join(lines).encode(), keys, rows


@pytest.mark.parametrize("made", [json_lines, plain_table, quoted_table, tags, spans])
def test_well_formed_files_are_read_as_they_were_written(made: Callable[[Random], Made], tmp_path: Path) -> None:
    for seed in range(FILES // 5):
        suffix, content, keys, expected = made(Random(seed))
        path = tmp_path / f"{seed}{suffix}"
        if seed % 10 == 0:
            path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content)
            keys = keys if suffix != ".bio" else {**keys, "format": "conll"}
        path.write_bytes(content)
        section = {"train": str(path), "split": {"valid": 0}, **keys}
        rows = read_corpus(Data.model_validate(section), seed=0).parts["train"]
        targets = rows.spans if keys.get("task") == "tagging" else rows.label
        assert list(zip(rows.text, targets, strict=True)) == expected, f"seed {seed}"

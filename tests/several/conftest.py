"""Three tiny tasks of different kinds, and what of a recipe reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

WORDS = {"a": "球赛队员进攻胜负", "b": "股票银行利率基金", "c": "电影演员导演票房"}
NAMES = {"PER": ["王明", "李雷"], "LOC": ["北京市", "上海"], "": ["的", "了在"]}
TASKS = """\
tasks:
  topic:
    train: {folder}/topic-train.jsonl
    valid: {folder}/topic-valid.jsonl
    test: {folder}/topic-test.jsonl
    transfer: {folder}/more.txt
    max_length: 16
    vocabulary: {{min_count: 1}}
  same:
    task: pairs
    train: {folder}/same-train.tsv
    valid: {folder}/same-valid.tsv
    test: {folder}/same-test.tsv
    header: false
    columns: {{text: 0, text_b: 1, label: 2}}
    max_length: 24
    vocabulary: {{min_count: 1}}
  names:
    task: tagging
    train: {folder}/names-train.bmes
    valid: {folder}/names-valid.bmes
    test: {folder}/names-test.bmes
    max_length: 24
    vocabulary: {{min_count: 1}}
"""


def write_tasks(folder: Path, rows: int = 60) -> None:
    """The files of `TASKS`: topics of texts, pairs of one topic or not, names in texts."""
    draw = random.Random(3)

    def text(topic: str, length: int) -> str:
        return "".join(draw.choices(WORDS[topic] + "的了", k=length))

    def tagged() -> str:
        lines = []
        for _ in range(draw.randint(1, 4)):
            kind = draw.choice(list(NAMES))
            word = draw.choice(NAMES[kind])
            tags = [f"B-{kind}", *[f"M-{kind}"] * (len(word) - 2), f"E-{kind}"] if kind else ["O"] * len(word)
            lines += [f"{character} {tag}\n" for character, tag in zip(word, tags, strict=True)]
        return "".join(lines)

    for part, count in (("train", rows), ("valid", rows // 3), ("test", rows // 3)):
        topics = [draw.choice("abc") for _ in range(count)]
        lines = [json.dumps({"text": text(t, draw.randint(3, 10)), "label": t}, ensure_ascii=False) for t in topics]
        (folder / f"topic-{part}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        pairs = [(draw.choice("ab"), draw.choice("ab")) for _ in range(count * 2 // 3)]
        lines = [f"{text(a, 4)}\t{text(b, 4)}\t{int(a == b)}\n" for a, b in pairs]
        (folder / f"same-{part}.tsv").write_text("".join(lines), encoding="utf-8")
        blocks = [tagged() for _ in range(count // 2)]
        (folder / f"names-{part}.bmes").write_text("\n".join(blocks), encoding="utf-8")
    more = "".join(text(draw.choice("abc"), 6) + "\n" for _ in range(20))
    (folder / "more.txt").write_text(more, encoding="utf-8")


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, and nothing else."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder

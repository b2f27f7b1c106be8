"""Make the headlines of the quickstart: six topics, words that belong to several of them, noise, some wrong labels.

    python -m dtrain.recipes.samples.make [FOLDER]

The same words.yaml and seed give the same bytes. Nothing here is real news. What makes the task hard:
- a clause's words are drawn from its topic, from words of several topics and from words of all topics, so
  that characters (盘 of 硬盘, 大盘, 底盘, 拼盘) and single words mislead, and context decides;
- every fourth headline has a second subject, and only the order and the joining words tell which of the two
  it is about: a bag of words cannot know;
- some headlines contain nothing that decides their topic, and some labels are wrong, in all parts alike: no model
  scores 100 %.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SEED = 20
ROWS = {"train": 3000, "valid": 600, "test": 600, "transfer": 3000}
TWO_SUBJECTS = 0.25
WRONG_LABEL = 0.06
NOISY = 0.1  # a character dropped, doubled, or swapped with the next
TRADITIONAL = 0.08
FULL_WIDTH = 0.15  # of headlines with digits or brackets
SURNAMES = "林沈顾陆江方程许周叶苏秦白楚田"
GIVEN = "知远明轩雨桐子涵一诺书航景行若溪清和晚舟思齐嘉禾"


class Writer:
    """Draws headlines; all randomness comes from one generator."""

    def __init__(self, words: dict[str, Any], seed: int) -> None:
        self.words, self.random = words, random.Random(seed)
        self.topics: list[str] = list(words["topics"])

    def headline(self) -> tuple[str, str]:
        """A clean headline and its topic."""
        topic = self.random.choice(self.topics)
        text = self._clause(topic)
        if self.random.random() < TWO_SUBJECTS:
            other = self._subject(self.random.choice([t for t in self.topics if t != topic]))
            about = self.random.choice(["about_last", "about_first"])
            text = self.random.choice(self.words[about]).format(a=text, b=other)
        elif self.random.random() < 0.2:
            opening, closing = self.random.choice([("【", "】"), ("[", "]"), ("", "："), ("", "|")])
            text = opening + self.random.choice(self.words["common"]["lead"]) + closing + text
        return self._filled(text), topic

    def _clause(self, topic: str) -> str:
        who, verb, thing, tail = (self._word(topic, slot) for slot in ("who", "verb", "thing", "tail"))
        forms = [
            f"{who}{verb}{thing}",
            f"{who}{verb}{thing}，{tail}",
            f"{thing}{tail}",
            f"{who}：{thing}{tail}",
        ]
        return self.random.choice(forms)

    def _subject(self, topic: str) -> str:
        thing = self._word(topic, "thing")
        return self.random.choice([thing, self._word(topic, "who") + "的" + thing])

    def _word(self, topic: str, slot: str) -> str:
        """A word of the topic, of several topics, or of all topics."""
        own: list[str] = self.words["topics"][topic][slot]
        if slot == "thing":
            shared = [word for word, topics in self.words["shared"].items() if topic in topics]
            return self._frequent(shared) if self.random.random() < 0.35 else self._frequent(own)
        return self.random.choice(self.words["common"][slot]) if self.random.random() < 0.55 else self._frequent(own)

    def _frequent(self, words: list[str]) -> str:
        """A word, the n-th (from 0) with weight 1 / (n + 2), so that some words are rare, as in real text."""
        return self.random.choices(words, [1 / (n + 2) for n in range(len(words))])[0]

    def _filled(self, text: str) -> str:
        pick = self.random.choice
        while "@" in text:
            text = text.replace("@", pick(SURNAMES) + pick(GIVEN) + pick(["", pick(GIVEN)]), 1)
        while "#" in text:
            text = text.replace("#", str(self.random.randint(2, 12)), 1)
        return text


def spoil(text: str, chance: random.Random, traditional: Callable[[str], str]) -> str:
    """The text with variants that `prepare` normalises (forms, blanks), and with typing errors that it cannot undo."""
    if chance.random() < NOISY:
        place = chance.randrange(len(text) - 1)
        here, after = text[place], text[place + 1]
        text = text[:place] + chance.choice(["", here + here, after]) + text[place + 1 :]
    if chance.random() < TRADITIONAL:
        text = traditional(text)
    if chance.random() < FULL_WIDTH:
        text = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    if chance.random() < 0.05:
        text = chance.choice([text + "  ", "\u3000" + text, text[:3] + "\u200b" + text[3:], text.replace("，", "， ")])
    return text


def make(folder: Path) -> None:
    """Write train, valid, test and transfer.jsonl into `folder`; no headline is in two of them, or twice in one."""
    from opencc import OpenCC

    traditional = OpenCC("s2t").convert
    writer = Writer(yaml.safe_load((HERE / "words.yaml").read_text(encoding="utf-8")), SEED)
    chance = random.Random(SEED + 1)
    seen: set[str] = set()
    for part, count in ROWS.items():
        lines: list[str] = []
        while len(lines) < count:
            text, topic = writer.headline()
            if text in seen:
                continue
            seen.add(text)
            if chance.random() < WRONG_LABEL:
                topic = chance.choice([t for t in writer.topics if t != topic])
            row = {"id": f"{part}-{len(lines) + 1}", "text": spoil(text, chance, traditional), "label": topic}
            if part == "transfer":
                del row["label"]
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

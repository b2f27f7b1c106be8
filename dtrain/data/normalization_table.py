"""Normalisation as a table, which an exported model applies without this package and without OpenCC."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import opencc

from dtrain.data.normalize import CharacterNormalizer, Normalizer
from dtrain.errors import DtrainError
from dtrain.recipe.data import Normalization

HOME = Path(opencc.__file__).parent / "clib"
NEVER = "(?!)"  # a pattern that matches nothing


def table_of_texts(spec: Normalization) -> dict[str, Any]:
    """The steps of `Normalizer` in their order.

    Returns:
        `before`: replacements of single characters; `words`: replacements of the matches of `pattern`, which prefers
        the longest; `after`: replacements of single characters, "" for those that are dropped; `whitespace` and
        `lower` as in the recipe.

    Raises:
        DtrainError: OpenCC's dictionaries cannot be read.
    """
    before, words = _simplification() if spec.simplify else ({}, {})
    after = {chr(code): "" if to is None else chr(to) for code, to in Normalizer(spec).table.items()}
    return {
        "before": before,
        "words": words,
        "pattern": _pattern(words),
        "after": after,
        "whitespace": spec.whitespace,
        "lower": spec.lower,
    }


def table_of_characters(spec: Normalization) -> dict[str, Any]:
    """`characters`: for each character that `CharacterNormalizer` changes, its replacement."""
    before, words = _simplification() if spec.simplify else ({}, {})
    seen = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    may_change = {*before, *(word for word in words if len(word) == 1), *map(chr, Normalizer(spec).table)}
    may_change |= {character for character in seen if character.isspace() or character.lower() != character}
    normalize = CharacterNormalizer(spec)
    return {"characters": {c: to for c in sorted(may_change) if (to := normalize(c)) != c}}


def _pattern(words: Iterable[str]) -> str:
    phrases = sorted((word for word in words if len(word) > 1), key=lambda word: (-len(word), word))
    single = "".join(word for word in words if len(word) == 1)
    if not single and not phrases:
        return NEVER
    heads = "".join(sorted({phrase[0] for phrase in phrases}))
    # Most characters begin no phrase: because of the lookahead the alternatives are not tried at them.
    found = [f"(?=[{re.escape(heads)}])(?:{'|'.join(map(re.escape, phrases))})"] * bool(phrases)
    return "|".join(found + [f"[{re.escape(single)}]"] * bool(single))


@cache
def _simplification() -> tuple[dict[str, str], dict[str, str]]:
    """OpenCC's t2s: the replacements of single characters that it makes first, and those of words and characters."""
    converter = opencc.OpenCC("t2s")
    steps = json.loads((HOME / "share" / "opencc" / "t2s.json").read_text(encoding="utf-8"))
    before: dict[str, str] = {}
    for step in steps.get("normalization", []):
        before |= {key: value for key, value in _dictionary(step["dict"]).items() if key != value}
    keys: set[str] = set()
    for step in steps["conversion_chain"]:
        keys |= _dictionary(step["dict"]).keys()
    # The conversion may ignore a dictionary (of characters that few fonts have), so the converter itself is asked.
    words = {key: to for key in sorted(keys) if (to := converter.convert(key)) != key or len(key) > 1}
    return before, words


def _dictionary(entry: dict[str, Any]) -> dict[str, str]:
    if "dicts" in entry:
        return {key: value for each in entry["dicts"] for key, value in _dictionary(each).items()}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "dictionary.txt"
        source = HOME / "share" / "opencc" / entry["file"]
        command = [HOME / "bin" / "opencc_dict", "-i", source, "-o", text, "-f", entry["type"], "-t", "text"]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DtrainError(
                f"data.normalize.simplify: the installed OpenCC brings no opencc_dict that reads its dictionaries ({error})"
            ) from None
        lines = text.read_text(encoding="utf-8").splitlines()
    # OpenCC takes the first of several translations.
    return {key: values.split(" ")[0] for line in lines if "\t" in line for key, values in [line.split("\t", 1)]}

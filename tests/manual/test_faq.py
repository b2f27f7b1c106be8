"""The messages that the FAQ explains are ones that the package prints, and each entry says its cause and what to do."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import dtrain
from dtrain.manual import pages

# Headings that are no message of this package: of the shell, of torch, or observations.
OTHERS = {
    "dtrain: command not found",
    "out of memory",
    "exit code 75",
    "the same settings give other numbers on another number of ranks",
    "the same recipe gives other numbers on another machine",
}
ENTRIES = [section for section in pages.sections("faq", pages.read("faq")) if section.text.startswith("### ")]


@cache
def texts() -> str:
    """Every text in the package's code, as a message has it; `…` stands where a value is filled in."""
    found = []
    for path in Path(dtrain.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
def test_entry_is_of_a_message_and_says_cause_and_remedy(entry: pages.Section) -> None:
    assert re.search(r"\n\n\*Cause:\* .*\n\n\*What to do:\* ", entry.text, re.DOTALL)
    for part in re.split(r"\.\.\.|; did you mean|GPUs$|line 1", entry.title):
        assert entry.title in OTHERS or part.strip() in texts(), part

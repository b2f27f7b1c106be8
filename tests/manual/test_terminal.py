"""A page on a terminal: no line is wider than it, nothing is lost, and marks of Markdown become bold and underlined."""

import re
from collections import Counter

import pytest

from dtrain.manual import pages, terminal
from dtrain.manual.reference import WIDTH

PAGES = [pages.INDEX, *pages.page_names()]


def plain(text: str) -> str:
    return re.sub(".\b", "", text)


@pytest.mark.parametrize("name", PAGES)
def test_lines_fit_a_terminal(name: str) -> None:
    """As they stand, which is what a pipe gets, and as a terminal shows them; a Chinese character takes two columns."""
    for text in (pages.read(name), plain(terminal.rendered(pages.read(name), WIDTH))):
        assert [line for line in text.splitlines() if terminal.columns_of(line) > WIDTH] == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("columns", [WIDTH, 200])
def test_nothing_is_lost(name: str, columns: int) -> None:
    page = re.sub(r"\[([^]]+)\]\([^)\s]+\)", r"\1", pages.read(name))
    page = re.sub(r"^```\w*$|^\|[-:|]+$", "", page, flags=re.MULTILINE)  # fences, and the line under a table's head
    letters = re.compile(r"[^\W_]+")
    shown = plain(terminal.rendered(pages.read(name), columns))
    if columns == WIDTH:  # a table that is wider becomes items, which say the names of its columns again and again
        heads = re.findall(r"^(\| .*)\n\n", page, flags=re.MULTILINE)
        lost = Counter(letters.findall(page)) - Counter(letters.findall(shown))
        assert lost <= Counter(letters.findall("".join(heads)))
    else:
        assert letters.findall(shown) == letters.findall(page)
    assert max(map(terminal.columns_of, shown.splitlines())) <= columns


def test_marks_become_bold_and_underlined() -> None:
    page = "# A `b`\n\nSee [it](x.md), `c d`, **e** and (*f*): 2 * 3 * 4, a_b.\n\n```bash\nls # x\n```\n\n- one\n  two\n- `k`\n"
    shown = terminal.rendered(page, 80)
    assert "A\bA b\bb\n\nSee _\bi_\bt, c\bc d\bd, e\be and (_\bf): 2 * 3 * 4, a_b.\n" in shown
    assert "\n\n  ls # x\n\n- one two\n- k\bk\n" in shown


def test_long_lines_are_filled_and_items_hang() -> None:
    shown = terminal.rendered("- " + "word " * 30 + "\n\n" + "more " * 30, 40)
    first, second, *_ = shown.splitlines()
    assert first.startswith("- word") and second.startswith("  word")
    assert all(len(line) <= 40 for line in shown.splitlines())


def test_tables_stand_in_columns_where_they_fit() -> None:
    page = "| a | long name |\n|---|---:|\n| `文` | 1 \\| 2 |\n| x | y |\n"
    assert plain(terminal.rendered(page, 40)) == "a   long name\n--  ---------\n文  1 | 2\nx   y\n"
    assert plain(terminal.rendered(page, 12)).splitlines() == [
        "- 文: long",
        "  name: 1 |",
        "  2",
        "- x: long",
        "  name: y",
    ]

"""A page of the manual rendered for a terminal: wrapped to its width, without the markup of Markdown.

Bold and underlined letters are overstruck (`b\\bb`, `_\\bb`), as in the output of `man`: every pager shows them as bold
and underlined, and `pydoc.pager` removes them for a terminal that cannot.
"""

from __future__ import annotations

import re
import textwrap
from unicodedata import east_asian_width

WIDEST = 100  # columns of a wrapped paragraph: longer lines are hard to read
# While lines are wrapped, a bold or underlined letter is a single character, so that it counts as one: it is shifted
# into a private plane of Unicode.
_BOLD, _UNDERLINED = 0xF0000, 0x100000
_ITEM = re.compile(r"(- |\d+\. )")
_ROW = re.compile(r"\| .*\|$")  # a row of a table


def rendered(page: str, columns: int) -> str:
    """A page for a terminal of `columns` columns. Lines of code are not wrapped."""
    width = min(columns, WIDEST)
    shown: list[str] = []
    for block in _blocks(page):
        if block[0].startswith("```"):
            shown += _code(block[1:-1], columns)
        elif block[0].startswith("#"):
            shown += _filled(_styled(block[0].lstrip("# ").replace("`", ""), _BOLD), width, "")
        elif _ROW.match(block[0]):
            shown += _table(block, columns, width)
        elif item := _ITEM.match(block[0]):
            shown += _filled(_inline(" ".join(line.strip() for line in block)), width, " " * len(item[0]))
        else:
            shown += _filled(_inline(" ".join(block)), width, "") if any(block) else block
    return "\n".join(map(_overstruck, shown)) + "\n"


def columns_of(line: str) -> int:
    """The columns that a line takes on a terminal: two for a Chinese character."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in line)


def _blocks(page: str) -> list[list[str]]:
    """The lines of each code block, table, list item and paragraph; an empty line is a block of its own.

    A line that ends in two spaces ends its block, as in Markdown.
    """
    blocks: list[list[str]] = []
    fenced = fresh = False
    for line in page.rstrip("\n").split("\n"):
        fence = line.startswith("```")
        table = _ROW.match(line) and blocks and not _ROW.match(blocks[-1][0])
        alone = not fenced and (not line or line.startswith("#") or _ITEM.match(line) or table)
        if alone or fresh or not blocks or (fence and not fenced):
            blocks.append([])
        blocks[-1].append(line)
        fenced ^= fence
        fresh = not fenced and (not line or line.startswith("#") or fence or line.endswith("  "))
    return blocks


def _filled(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _code(lines: list[str], columns: int) -> list[str]:
    """Lines of code, indented by two columns if every line then still fits."""
    indent = " " * max(0, min(2, columns - max(map(columns_of, lines), default=0)))
    return [(indent + line).rstrip() for line in lines]


def _table(lines: list[str], columns: int, width: int) -> list[str]:
    """A table with aligned columns; if it is wider than the terminal, a list of its rows that names each cell."""
    rows = [[_inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", line[1:-1])] for line in lines]
    del rows[1]
    widths = [max(columns_of(row[place]) for row in rows if place < len(row)) for place in range(len(rows[0]))]
    if sum(widths) + 2 * (len(widths) - 1) > columns:
        return [line for row in rows[1:] for line in _filled(f"- {_named(rows[0], row)}", width, "  ")]
    rows = [[cell + " " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=False)] for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return ["  ".join(rows[0]).rstrip(), rule, *("  ".join(row).rstrip() for row in rows[1:])]


def _named(head: list[str], row: list[str]) -> str:
    """A row as text: its first cell, then each other cell that is not empty, with the name of its column."""
    cells = [f"{name}: {cell}" if name else cell for name, cell in zip(head[1:], row[1:], strict=False) if cell]
    return f"{row[0]}: {'; '.join(cells)}" if cells else row[0]


def _inline(text: str) -> str:
    """Render markup inside a line: code and strong text are bold, emphasis and the text of links underlined."""
    pieces = re.split(r"(`[^`]+`)", text)
    for place, piece in enumerate(pieces):
        if place % 2:
            pieces[place] = _styled(piece[1:-1], _BOLD)
        else:
            piece = re.sub(r"\[([^\]]+)\]\([^)\s]+\)", lambda link: _styled(link[1], _UNDERLINED), piece)
            piece = re.sub(r"\*\*([^*]+)\*\*", lambda words: _styled(words[1], _BOLD), piece)
            pieces[place] = re.sub(r"(?<![\w*)])\*(\w[^*]*)\*", lambda words: _styled(words[1], _UNDERLINED), piece)
    return "".join(pieces).replace("\\|", "|")


def _styled(text: str, plane: int) -> str:
    """Shift the ASCII characters of a text into a plane; others stay plain: not every pager overstrikes wide ones."""
    return "".join(chr(plane + ord(letter)) if "!" <= letter <= "~" else letter for letter in text)


def _overstruck(line: str) -> str:
    """The line with overstruck sequences in place of shifted letters."""
    return "".join(
        letter
        if ord(letter) < _BOLD
        else f"_\b{chr(ord(letter) - _UNDERLINED)}"
        if ord(letter) >= _UNDERLINED
        else f"{chr(ord(letter) - _BOLD)}\b{chr(ord(letter) - _BOLD)}"
        for letter in line
    )

"""Find what `dtrain help` shows: a page, a section of a page, a recipe key, or the lines that contain a word.

Everything is read from the Markdown in `dtrain/docs`, the reference included, so that neither the schema nor torch is
imported. This module imports nothing from the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs"
INDEX = "index"
KEYS = "recipe-keys"  # the page of recipe keys, which reference.py generates
RESULTS = "results"  # folder of measured results: a link to tests/benchmarks/results, so that a wheel holds a copy


@dataclass(frozen=True)
class Section:
    """A heading of a page and the text below it, up to the next heading of the same or a higher level."""

    page: str
    title: str
    text: str


def page_names() -> list[str]:
    """Every page but the index, in the order of the index."""
    listed = re.findall(r"\]\(([a-z0-9-]+)\.md\)", read(INDEX))
    return [*dict.fromkeys(listed)]


def result_names() -> list[str]:
    """The names of the pages of measured results, such as `results/tnews`; their lines may be wider than 80 columns."""
    return sorted(f"{RESULTS}/{path.stem}" for path in (FOLDER / RESULTS).glob("*.md"))


def read(page: str) -> str:
    """The Markdown text of a page; raises FileNotFoundError if there is no such page."""
    return (FOLDER / f"{page}.md").read_text(encoding="utf-8")


def find(topic: str) -> str | None:
    """The text for a topic: the name of a page, `results/NAME`, the path of a key, or a heading; None if none fits."""
    name = topic.removesuffix(".md").replace("_", "-").lower()
    if name in (INDEX, *page_names()):
        return read(name)
    if topic.removesuffix(".md") in result_names():
        return read(topic.removesuffix(".md"))
    keys = find_keys(topic)
    if keys and "." in topic:
        return keys
    headings = [section for section in _all_sections() if _plain(section.title) == topic.lower()]
    texts = [f"{section.text}\n\n(from the page {section.page})\n" for section in headings]
    return "\n".join([*texts, *([keys] if keys else [])]) or None


def find_keys(path: str) -> str:
    """What the reference says about a recipe key, given by its path (`students.0.optimizer.lr`) or its end, or "".

    A list's number, `*` or a member's name stands for N and a mapping's own key for NAME, as in the page.
    """
    words = path.split(".")
    found = []
    for section in sections(KEYS, read(KEYS)):
        if not section.text.startswith("## "):
            continue
        places = [place.split(".") for place in re.findall(r"`([^`]+)`", _places(section))]
        whole = [place for place in places if _ends(place, words)]
        if whole and len(words) > 1:
            found.append(section.text)
            continue
        for key, text in _items(section.text):
            matching = [".".join([*place, key]) for place in places or [[]] if _ends([*place, key], words)]
            if matching:
                places_in_recipe = "  \n".join(f"`{path}`" for path in matching)
                found.append(f"{places_in_recipe} (of {section.title})\n\n{text}\n")
    return "\n".join(found)


def search(word: str) -> list[str]:
    """Every line that contains the word, whatever its case, as `page: section: line`."""
    found = []
    for page in [INDEX, *page_names()]:
        title = ""
        for line in read(page).splitlines():
            if line.startswith("#"):
                title = line.lstrip("# ")
            if word.lower() in line.lower():
                place = page if line.startswith("# ") else f"{page}: {title}"
                found.append(f"{place}: {line.strip().removeprefix('- ')}")
    return found


def sections(page: str, text: str) -> Iterator[Section]:
    """Every section of a page. The text of a section includes its subsections, which are sections as well."""
    lines = text.splitlines()
    heads = [(number, len(line) - len(line.lstrip("#"))) for number, line in _headings(lines)]
    for place, (number, rank) in enumerate(heads):
        end = next((other for other, other_rank in heads[place + 1 :] if other_rank <= rank), len(lines))
        yield Section(page, lines[number].lstrip("# "), "\n".join(lines[number:end]).rstrip())


def topics() -> list[str]:
    """The names that `dtrain help` accepts: pages, results and headings."""
    return [*page_names(), *result_names(), *(_plain(section.title) for section in _all_sections())]


def _headings(lines: list[str]) -> Iterator[tuple[int, str]]:
    """The heading lines, each with its number; a line with `#` in a code block is not a heading."""
    fenced = False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and line.startswith("#"):
            yield number, line


def _all_sections() -> Iterator[Section]:
    for page in page_names():
        yield from (section for section in sections(page, read(page)) if section.text.startswith("##"))


def _plain(title: str) -> str:
    return title.replace("`", "").lower()


def _places(section: Section) -> str:
    """The sentence `At ...` of a section of the key reference, which lists its places in a recipe; "" without one."""
    return next((part for part in section.text.split("\n\n")[1:2] if part.startswith("At ")), "")


def _items(text: str) -> Iterator[tuple[str, str]]:
    """Each key that a section of the reference lists, with its lines."""
    for block in re.split(r"\n(?=- )", text)[1:]:
        if match := re.match(r"- `([^`]+)`", block):
            yield match[1], block.split("\n\n")[0].rstrip()


def _ends(place: list[str], asked: list[str]) -> bool:
    """Whether the path that was asked for is the end of a place in a recipe."""
    if len(asked) > len(place):
        return False
    for number, (pattern, word) in enumerate(zip(place[len(place) - len(asked) :], asked, strict=True)):
        # A member's name may be any word, but follows the name of its list.
        member = pattern == "N" and (number > 0 or re.fullmatch(r"\d+|\*|N", word))
        fits = member or pattern in (word, "NAME")
        if not fits:
            return False
    return True

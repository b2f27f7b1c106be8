"""The charts of the manual's page when-it-helps, drawn from the table on that page.

    python tests/benchmarks/gains_chart.py          # writes the chart into the page, and the picture beside the results

The chart in the page is text, as the page is also read in terminals: for each row, the share of the teacher's lead over
the student trained alone that distillation recovered. The picture shows the three scores of each row
(results/when_it_helps.svg; needs matplotlib).
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "dtrain" / "docs" / "when-it-helps.md"
PICTURE = Path(__file__).parent / "results" / "when_it_helps.svg"
BAR = 20  # characters for the whole lead of a teacher
START, END = "```text\n", "```\n"

Row = tuple[str, float, float, float]  # task, score of the teacher, of the student alone, and distilled


def rows(page: str) -> list[Row]:
    """The rows of the page's first table."""
    lines = [line for line in page.splitlines() if re.match(r"\|.*\|( *\d+\.\d+ *\|){3}", line)]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(name, float(teacher), float(alone), float(distilled)) for name, teacher, alone, distilled, *_ in found]


def chart(scores: list[Row]) -> str:
    """A line of text for each row; its bar is full where the student has reached its teacher, or is above it."""
    width = max(len(name) for name, *_ in scores)
    lines = []
    for name, teacher, alone, distilled in scores:
        share = (distilled - alone) / (teacher - alone)
        bar = "#" * max(0, min(BAR, round(share * BAR)))
        number = "above it" if share > 1 else f"{100 * share:3.0f} %"
        lines.append(f"{name:{width}} |{bar:.<{BAR}}| {number}")
    return "\n".join(lines) + "\n"


def with_chart(page: str) -> str:
    """The page with the chart of its table in place of its first block of text."""
    start = page.index(START) + len(START)
    return page[:start] + chart(rows(page)) + page[page.index(END, start) :]


def draw(scores: list[Row]) -> None:
    """Write the picture: a line for each row from the student alone to its teacher."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dtrain", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(scores) + 1), layout="constrained")
    places = list(range(len(scores), 0, -1))
    names, teachers, alone, distilled = zip(*scores, strict=True)
    axes.hlines(places, alone, teachers, color="0.8", linewidth=3)
    axes.plot(alone, places, "o", color="0.45", label="student alone")
    axes.plot(distilled, places, "D", color="tab:blue", label="student, distilled")
    axes.plot(teachers, places, "|", color="black", markersize=14, markeredgewidth=2, label="teacher")
    axes.set_yticks(places, names)
    axes.set_xlabel("score in %")
    axes.grid(axis="x", color="0.92")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_chart(page), encoding="utf-8")
    draw(rows(page))


if __name__ == "__main__":
    main()

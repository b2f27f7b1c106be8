"""The report's plots, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from dtrain.report.tables import large, plotted_part, score_of, significant
from dtrain.tasks.registry import VIEWS
from dtrain.tasks.view import View

TEACHER, DISTILLED, SCRATCH = "#3b3f46", "#1f6fd1", "#e07b39"
KINDS = {
    "teacher": (TEACHER, "s"),
    "distilled student": (DISTILLED, "o"),
    "student from scratch": (SCRATCH, "D"),
}
# Okabe and Ito's palette, whose colours colour-blind readers can tell apart, too.
LINES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7a5195", "#8c8c8c"]
REST = "#d0d4da"
MOST_PHASES = 5  # panels that fit side by side
MOST_TOKENS = 40  # of a text in one line
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": "#24292f",
    "axes.edgecolor": "#8b949e",
    "axes.labelcolor": "#24292f",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaecef",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "figure.facecolor": "white",
}


def score_against(results: dict[str, Any], key: str, path: Path) -> bool:
    """The task's leading score of every group against `parameters`, or against `milliseconds` a row (CPU, batch 1).

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    speed = "rows_per_second_cpu_1"
    if key == "milliseconds":
        groups = [(1000 / group[speed], group) for group in results["groups"] if speed in group]
        label, write = "milliseconds a row on CPU, one at a time", significant
    else:
        groups = [(group["parameters"], group) for group in results["groups"]]
        label, write = "parameters", large
    view = VIEWS[results["task"]]
    part = plotted_part(results)
    scored = [(x, group, score_of(group, view.lead, results, part)) for x, group in groups]
    scored = [(x, group, score) for x, group, score in scored if score["mean"] is not None]
    if not scored:
        return False
    with mpl.rc_context(STYLE):
        figure, axes = _figure(6.4, 4.4)
        axis = axes[0]
        for name, (color, marker) in KINDS.items():
            own = [(x, score) for x, group, score in scored if _kind(group) == name]
            if own:
                axis.errorbar(
                    [x for x, _ in own],
                    [100 * score["mean"] for _, score in own],
                    yerr=[100 * (score["std"] or 0.0) for _, score in own],
                    fmt=marker, color=color, markersize=7, markeredgecolor="white", capsize=3, lw=1.2, label=name,
                )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
        axis.set_ylabel(f"{view.title}, {part} (%)")
        axis.margins(x=0.3, y=0.15)
        axis.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3)
        _label_points(axis, [(x, 100 * score["mean"], group["name"]) for x, group, score in scored])
        _save(figure, path)
    return True


def training_curves(histories: list[tuple[str, list[list[dict[str, Any]]]]], part: str, view: View, path: Path) -> bool:
    """The task's leading score and loss on `part`, and the training objective, by epoch.

    Args:
        histories: the name of each group of seeds and its members' `history.json`, best group first. The first few groups
            have a colour of their own, the others are grey.

    Returns:
        Whether there was anything to draw; if not, no file is written.
    """
    panels = (
        (f"{_capital(view.title)}, {part} (%)", part, view.lead, 100.0),
        (f"{_capital(view.loss)}, {part}", part, "loss", 1.0),
        ("Training objective (each its own)", "train", "loss", 1.0),
    )
    histories = _trained(histories)
    drawn = False
    with mpl.rc_context(STYLE):
        figure, axes = _figure(12.0, 3.6, panels=3)
        for axis, (title, split, key, scale) in zip(axes, panels, strict=True):
            axis.set_title(title)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            for number, (name, members) in reversed(list(enumerate(histories))):
                color = LINES[number] if number < len(LINES) else REST
                for order, history in enumerate(members):
                    points = [(p["epoch"], scale * p[key]) for p in history if p["split"] == split and key in p]
                    if points:
                        drawn = True
                        axis.plot(
                            *zip(*points, strict=True), color=color, lw=1.5, alpha=0.85,
                            marker="o" if len(points) < 15 else None, markersize=3,
                            label=name if order == 0 and number < len(LINES) else None,
                        )  # fmt: skip
        if not drawn:
            return False
        if axes[2].dataLim.ymin > 0:
            axes[2].set_yscale("log")
            axes[2].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes[2].yaxis.set_minor_formatter(NullFormatter())
        named: dict[str, Any] = {}
        for axis in axes:
            handles, names = axis.get_legend_handles_labels()
            named |= dict(zip(names[::-1], handles[::-1], strict=True))  # drawn from the last to the first
        columns = max(1, min(5, 160 // (max(map(len, named)) + 8)))  # of the 160 letters that fit side by side
        figure.legend(
            list(named.values()),
            list(named),
            frameon=False,
            fontsize=9,
            loc="outside lower center",
            ncols=columns,
        )
        _save(figure, path)
    return True


def phase_curves(histories: list[tuple[str, list[list[dict[str, Any]]]]], path: Path) -> bool:
    """The training objective by epoch, a panel for each phase of students; `histories` as for `training_curves`.

    Returns:
        Whether some student has phases; if not, no file is written.
    """
    histories = _trained(histories)
    points = [entry for _, members in histories for history in members for entry in history if "phase" in entry]
    names = list(dict.fromkeys(entry["phase"] for entry in points))[:MOST_PHASES]
    if not names:
        return False
    with mpl.rc_context(STYLE):
        figure, axes = _figure(max(6.4, 3.2 * len(names)), 3.2, panels=len(names))
        for axis, name in zip(axes, names, strict=True):
            axis.set_title(f"Phase {name}")
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            for number, (group, members) in reversed(list(enumerate(histories))):
                for order, history in enumerate(members):
                    own = [e for e in history if e.get("phase") == name and e["split"] == "train" and "loss" in e]
                    if own:
                        axis.plot(
                            [entry["epoch"] for entry in own], [entry["loss"] for entry in own],
                            color=LINES[number] if number < len(LINES) else REST, lw=1.5, alpha=0.85,
                            marker="o" if len(own) < 15 else None, markersize=3, label=group if order == 0 else None,
                        )  # fmt: skip
        axes[0].set_ylabel("training objective")
        axes[0].legend(frameon=False, fontsize=9)
        _save(figure, path)
    return True


def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Heat map of the counts, shaded by share of the gold class; up to 20 classes show their counts."""
    table = np.asarray(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    classes = len(labels)
    family = _family_for("".join(labels))
    # Without a font for the labels their numbers are shown; the table of classes has both.
    names = list(labels) if family else [str(number) for number in range(classes)]
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.family": family or STYLE["font.family"]}):
        side = min(12.0, max(3.6, 1.6 + 0.45 * classes))
        figure, axes = _figure(side + 1.2, side)
        axis = axes[0]
        image = axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        ticks = range(0, classes, max(1, classes // 40))
        short = [_short(name) for name in names]
        long = max(sum(2 if ord(c) > 0x2E7F else 1 for c in name) for name in short) > 6  # wide characters
        axis.set_xticks(ticks, [short[t] for t in ticks], rotation=45 if long else 0, ha="right" if long else "center")
        axis.set_yticks(ticks, [short[t] for t in ticks])
        axis.set_xlabel("predicted")
        axis.set_ylabel("gold")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        if classes <= 20:
            for (row, column), count in np.ndenumerate(table):
                if count:
                    color = "white" if shares[row, column] > 0.55 else "#24292f"
                    axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
        bar = figure.colorbar(image, ax=axis, shrink=0.7, pad=0.02, format=lambda value, _: f"{100 * value:.0f} %")
        bar.set_label("share of the gold class")
        bar.outline.set_visible(False)
        _save(figure, path)


def scatter(gold: Sequence[float], predicted: Sequence[float], path: Path) -> None:
    """Predicted numbers against those of the rows, with the line where both are equal."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(5.2, 4.6)
        axis = axes[0]
        least, greatest = min([*gold, *predicted]), max([*gold, *predicted])
        axis.plot([least, greatest], [least, greatest], color=REST, lw=1.2)
        axis.scatter(gold, predicted, s=14, color=DISTILLED, alpha=0.5, linewidths=0)
        axis.set_xlabel("the row's number")
        axis.set_ylabel("predicted")
        _save(figure, path)


def type_scores(per_type: dict[str, dict[str, Any]], path: Path) -> None:
    """F1 of every type as bars, the most frequent type on top, with its number of gold entities."""
    names = sorted(per_type, key=lambda name: -per_type[name]["support"])[::-1]
    family = _family_for("".join(names))
    order = list(per_type)
    with mpl.rc_context({**STYLE, "font.family": family or STYLE["font.family"]}):
        figure, axes = _figure(6.4, max(2.8, 1.2 + 0.32 * len(names)))
        axis = axes[0]
        values = [100 * per_type[name]["f1"] for name in names]
        axis.barh(range(len(names)), values, height=0.65, color=DISTILLED)
        # Without a font for the names their numbers are shown, in the order of the table.
        axis.set_yticks(range(len(names)), [_short(name) if family else str(order.index(name)) for name in names])
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            text = f"{value:.1f}  ({per_type[name]['support']:,})"
            axis.annotate(text, (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set_xlim(0, 118)  # room for the text beside a bar of 100
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("F1 (%), in brackets the gold entities")
        axis.tick_params(length=0)
        axis.grid(visible=False, axis="y")
        _save(figure, path)


def point_curves(found: dict[str, Any], path: Path) -> None:
    """Knowledge points of a text in the foreground and in the background by epoch, and the share of the foreground.

    Args:
        found: as `points.collect_points` gives it.
    """
    panels = {
        "foreground": "Points of a text in the foreground",
        "background": "Points of a text in the background",
        "share": "Share in the foreground (%)",
    }
    with mpl.rc_context(STYLE):
        figure, axes = _figure(9.6, 3.2, panels=len(panels))
        for axis, (key, title) in zip(axes, panels.items(), strict=True):
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            for number, group in reversed(list(enumerate(found["groups"]))):
                for order, member in enumerate(group["members"]):
                    own = [entry for entry in member["epochs"] if entry[key] is not None]
                    axis.plot(
                        [entry["epoch"] for entry in own],
                        [entry[key] * (100 if key == "share" else 1) for entry in own],
                        color=LINES[number] if number < len(LINES) else REST, lw=1.5, alpha=0.85,
                        marker="o" if len(own) < 15 else None, markersize=3, label=group["name"] if order == 0 else None,
                    )  # fmt: skip
            axis.set_ylim(bottom=0)
        axes[0].legend(frameon=False, fontsize=8)
        _save(figure, path)


def shaded_texts(texts: list[list[dict[str, Any]]], path: Path) -> None:
    """Texts as lines of tokens, one for each group of students; a darker token is known better, foreground is underlined.

    Args:
        texts: as `points.shaded_texts` gives them.
    """
    lines = [(own["name"], own["tokens"][:MOST_TOKENS]) for text in texts for own in text]
    every = len(texts[0]) if texts else 0
    family = _family_for("".join(token["text"] for _, tokens in lines for token in tokens))
    width = max((sum(_cells(token, family) for token in tokens) for _, tokens in lines), default=1)
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.family": family or STYLE["font.family"]}):
        figure, axes = _figure(min(14.0, 2.2 + 0.12 * width), 0.6 + 0.3 * (len(lines) + 0.5 * len(texts)))
        axis = axes[0]
        height = 0.0
        for number, (name, tokens) in enumerate(lines):
            height -= 1.5 if every and number and number % every == 0 else 1.0
            axis.text(-1, height, _short(name), ha="right", va="center", fontsize=8)
            place = 0
            for order, token in enumerate(tokens):
                cells = _cells(token, family)
                axis.add_patch(
                    Rectangle((place, height - 0.42), cells, 0.84, color=DISTILLED, alpha=token["shade"], lw=0)
                )
                # Without a font for the texts the numbers of tokens are shown; the page has the texts themselves.
                word = token["text"] if family else str(order)
                axis.text(place + cells / 2, height, word, ha="center", va="center", fontsize=8)
                if token["foreground"]:
                    axis.plot([place, place + cells], [height - 0.45] * 2, color=TEACHER, lw=1.2)
                place += cells
        axis.set_xlim(-1, width)
        axis.set_ylim(height - 0.8, 0)
        axis.set_axis_off()
        _save(figure, path)


# --- helpers -----------------------------------------------------------------------------------------


def _trained(histories: list[tuple[str, list[list[dict[str, Any]]]]]) -> list[tuple[str, list[list[dict[str, Any]]]]]:
    """The groups that have a history: teachers that are taken as they are have none, and need no colour."""
    return [(name, members) for name, members in histories if any(members)]


def _cells(token: dict[str, Any], family: list[str] | None) -> int:
    """How wide a token is drawn, in letters; Chinese characters are as wide as two."""
    return 1 + (sum(2 if ord(letter) > 0x2E7F else 1 for letter in token["text"]) if family else 2)


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _capital(title: str) -> str:
    return title[0].upper() + title[1:]


def _kind(group: dict[str, Any]) -> str:
    if group["kind"] == "teachers":
        return "teacher"
    return "distilled student" if group["teachers"] else "student from scratch"


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Figure, path: Path) -> None:
    # No date and no program in the file: equal numbers give equal bytes.
    figure.savefig(path, metadata={"Software": None})


def _label_points(axis: Axes, points: list[tuple[float, float, str]]) -> None:
    """Write the names of the 12 highest points beside them, where they cover no marker and no other name.

    A name for which there is no such place is left out, as the table has it.
    """
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # computes the layout
    places = axis.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in places]
    inside = axis.get_window_extent()
    beside = [(side, height) for height in (0, 11, -11, 22, -22, 33, -33) for side in (8, -8)]
    for x, y, name in sorted(points, key=lambda point: -point[1])[:12]:
        for side, height in beside:
            text = axis.annotate(
                name, (x, y), xytext=(side, height), textcoords="offset points", va="center", fontsize=8,
                ha="left" if side > 0 else "right",
            )  # fmt: skip
            text.set_in_layout(False)
            box = text.get_window_extent()
            if inside.x0 < box.x0 and box.x1 < inside.x1 and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if height:
                    line = {"arrowstyle": "-", "color": "#b0b6be", "lw": 0.6}
                    axis.annotate("", (x, y), (side, height), textcoords="offset points", arrowprops=line)
                break
            text.remove()


def _family_for(text: str) -> list[str] | None:
    """A font family of this machine that has every character of `text`; None where there is none."""
    needed = {ord(character) for character in text}
    wanted = (
        "Noto Sans CJK SC",
        "Source Han Sans SC",
        "WenQuanYi Micro Hei",
        "Microsoft YaHei",
        "PingFang SC",
        "SimHei",
    )
    for family in (*STYLE["font.family"], *wanted):
        try:
            file = font_manager.findfont(family, fallback_to_default=False)
        except ValueError:
            continue
        if needed <= FT2Font(file).get_charmap().keys():
            return [family]
    return None

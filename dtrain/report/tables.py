"""The report's tables as text: their columns, and how numbers are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dtrain.tasks.registry import VIEWS

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Headers, rows of as many cells, and the numbers of the rows to highlight."""

    headers: list[str]
    rows: list[list[str]]
    marked: frozenset[int] = frozenset()


def summary(results: dict[str, Any]) -> Table:
    """Teachers and students side by side, one row for each group of seeds. Columns without any value are left out."""
    groups = results["groups"]
    marked = {i for i, group in enumerate(groups) if results["student"] in group["members"]}
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("model", lambda g: g["name"]),
        ("kind", lambda g: kind(g)),
        ("seeds", lambda g: str(len(g["seeds"]))),
        *_score_columns(results, lambda spread: spread_text(spread)),
        *_cost_columns(results),
    ]
    if all(len(group["seeds"]) == 1 for group in groups):
        del columns[2]
    return _table(columns, groups, marked)


def every_model(results: dict[str, Any]) -> Table:
    """One row for each trained model."""
    models = results["models"]
    marked = {i for i, model in enumerate(models) if model["name"] in (results["student"], results["teacher"])}
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("model", lambda m: m["name"]),
        ("kind", lambda m: kind(m)),
        ("seed", lambda m: str(m["seed"])),
        *_score_columns(results, percent),
        (f"loss, {results['part']}", lambda m: "" if m["loss"] is None else f"{m['loss']:.4f}"),
        (f"left after layer, {results['part']} (%)", _exits),
        ("best epoch", lambda m: plain(m.get("best_epoch"))),
        ("steps", lambda m: plain(m.get("steps"))),
        ("s / epoch", lambda m: significant(m.get("seconds_per_epoch"))),
        ("rows/s in training", lambda m: significant(m.get("rows_per_second"))),
        *_millisecond_columns(),
    ]
    return _table(columns, models, marked)


def _compared(check: Row) -> str:
    """Scores before and after an export, with the part whose rows were scored.

    Checks by versions before 0.2.0 have only the score of `metric`.
    """
    scores = check.get("scores", {check["metric"]: check})
    told = ", ".join(f"{name} {of['before']:.4f} → {of['after']:.4f}" for name, of in scores.items())
    return f"{told} ({check['split']})" if "split" in check else told


def exported(results: dict[str, Any]) -> Table:
    """One row for each exported model, compared with the model that it was made from."""
    own = {(model["kind"], model["name"]): model for model in results["models"]}

    def of(entry: Row) -> Row:
        return own[entry["kind"], entry["model"]]

    def smaller(entry: Row) -> str:
        return f"{large(entry['bytes'], 'B')} ({times(of(entry)['bytes'] / entry['bytes'])})"

    def rate(entry: Row, key: str) -> str:
        found = entry.get(key)
        return "" if found is None else f"{significant(found)} ({times(found / of(entry)[key])})"

    def check(entry: Row, write: Callable[[Row], str]) -> str:
        return write(entry["check"]) if "check" in entry else ""

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("exported", lambda e: e["name"]),
        ("kind of file", lambda e: e["to"] + ", int8" * e["int8"]),
        ("graphs on disk (smaller)", smaller),
        *((f"rows/s, CPU, batch {n} (speed-up)", partial(rate, key=f"rows_per_second_cpu_{n}")) for n in (1, 64)),
        *_millisecond_columns(),
        ("other answers", lambda e: check(e, lambda c: f"{plain(c['flips'])} of {plain(c['rows'])}")),
        ("numbers differ by", lambda e: check(e, lambda c: f"{c['largest_difference']:.1g}")),
        ("score before → after (rows)", lambda e: check(e, _compared)),
    ]
    return _table(columns, results["exported"], set())


def annotated(results: dict[str, Any]) -> Table:
    """Two rows for each teacher that reads annotations: with the given ones, and with those that a tagger finds."""
    found = results["annotated"]

    def score(key: str, part: str, row: Row) -> str:
        return percent(row["parts"][part][key]) if part in row["parts"] else ""

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("teacher", lambda r: r["name"]),
        ("annotations", lambda r: f"found by {r['annotated_by']}" if r["annotated_by"] else "given"),
    ]
    for part in found[0]["parts"]:
        columns += [
            (f"{title}, {part} (%)", partial(score, key, part)) for key, title in VIEWS[results["task"]].columns
        ]
    return _table(columns, found, set())


def _millisecond_columns() -> list[tuple[str, Callable[[Row], str]]]:
    def shown(row: Row, key: str) -> str:
        return significant(row.get(key))

    return [(f"ms a row, CPU, {share}", partial(shown, key=f"milliseconds_cpu_1_{share}")) for share in ("p50", "p99")]


def search(rungs: list[dict[str, Any]], failed: list[dict[str, Any]]) -> Table:
    """One row for each student that was compared or failed before; those with a model are marked.

    Args:
        rungs: the search's comparisons and what was decided at each.
        failed: the members without a model, with the reasons.
    """
    reasons = {failure["name"]: failure["reason"] for failure in failed if failure["kind"] == "students"}
    names = list(dict.fromkeys([name for rung in rungs for name in rung["scores"]] + list(reasons)))
    names.sort(key=lambda name: [-rung["scores"].get(name, -math.inf) for rung in reversed(rungs)])
    # A student that was complete before it was compared kept its model.
    ends = reasons | {name: f"after epoch {r['epoch']}" for r in rungs for name in r["stopped"] if name in reasons}
    headers = ["student", *(f"{rung['metric']} to epoch {rung['epoch']}" for rung in rungs), "stopped"]
    rows = [
        [
            name,
            *(f"{abs(rung['scores'][name]):.4f}" if name in rung["scores"] else "" for rung in rungs),
            ends.get(name, ""),
        ]
        for name in names
    ]
    return Table(headers, rows, frozenset(i for i, name in enumerate(names) if name not in ends))


def phases(found: list[dict[str, Any]], lead: str) -> Table:
    """One row for each phase of each student; the scores are those of the weights that it kept.

    Args:
        lead: the task's leading score. Phases on plain text have a perplexity in place of it, in a column of its own.
    """
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("student", lambda p: p["student"]),
        ("phase", lambda p: p["name"]),
        ("rows", lambda p: ", ".join(p["rows"])),
        ("losses", lambda p: ", ".join(p["losses"])),
        ("epochs", lambda p: plain(p["epochs"])),
        ("steps", lambda p: plain(p["steps"])),
        ("seconds", lambda p: significant(p["seconds"])),
        ("weights kept", lambda p: f"{p['kept']}, epoch {p['epoch']:g}"),
        (f"{lead}, valid (%)", lambda p: percent(p["scores"].get(lead)) if p["split"] == "valid" else ""),
        ("perplexity, held out", lambda p: significant(p["scores"].get("perplexity"))),
        ("loss", lambda p: f"{p['scores']['loss']:.4f}" if "loss" in p["scores"] else ""),
    ]
    return _table(columns, found, set())


def classes(table: list[dict[str, Any]]) -> Table:
    """Scores of every class of one model."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("#", lambda r: str(r["number"])),
        ("class", lambda r: r["label"]),
        ("precision", lambda r: percent(r["precision"])),
        ("recall", lambda r: percent(r["recall"])),
        ("f1", lambda r: percent(r["f1"])),
        ("rows", lambda r: plain(r["rows"])),
    ]
    return _table(columns, [{"number": number, **row} for number, row in enumerate(table)], set())


def types(table: dict[str, Row], model: Row) -> Table:
    """Entity scores of every type of one model, and over all of them."""
    rows: list[Row] = [{"type": name, **row} for name, row in table.items()]
    micro = {key: model[key] for key in ("precision", "recall", "f1")}
    macro = {key: model[f"{key}_macro"] for key in ("precision", "recall", "f1")}
    rows.append({"type": "all entities (micro)", **micro, "support": model["entities"]})
    rows.append({"type": "mean of the types (macro)", **macro, "support": None})
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("type", lambda r: r["type"]),
        ("precision", lambda r: percent(r["precision"])),
        ("recall", lambda r: percent(r["recall"])),
        ("f1", lambda r: percent(r["f1"])),
        ("entities", lambda r: plain(r["support"])),
    ]
    return _table(columns, rows, {len(table)})


def brief(results: dict[str, Any]) -> list[str]:
    """One line for each group, for the terminal, with the scores on the headline's part."""
    lines = []
    for group in results["groups"]:
        part = told_of(group, results)
        scores = ", ".join(
            f"{title} {spread_text(score_of(group, key, results, part))} %"
            for key, title in VIEWS[results["task"]].columns
        )
        line = f"{group['name']} ({kind(group)}): " + (f"on {part} {scores}" if part else "not scored")
        line += f", {large(group['parameters'])} parameters{_ratio(group, 'compression')}"
        if "rows_per_second_cpu_64" in group:
            line += f", {_rate(group, 'cpu_64')} rows/s on CPU"
        lines.append(line)
    for row in results.get("annotated", []):
        if row["annotated_by"]:
            told = ", ".join(
                f"{title} {percent(row['parts'][results['headline']][key])} %"
                for key, title in VIEWS[results["task"]].columns
            )
            lines.append(
                f"{row['name']} (teacher, annotations found by {row['annotated_by']}): on {results['headline']} {told}"
            )
    return lines + [f"{failure['name']}: no result: {failure['reason']}" for failure in results["failed"]]


def told_of(group: Row, results: Row) -> str:
    """The part whose scores of a group are shown first: the headline's if it has scores there; "": it has none at all."""
    lead = VIEWS[results["task"]].lead
    parts: list[str] = [results["part"], *(key for key in ("valid", "test") if isinstance(group.get(key), dict))]
    scored = [p for p in parts if score_of(group, lead, results, p)["mean"] is not None]
    return str(results["headline"]) if results["headline"] in scored else next(iter(scored), "")


def plotted_part(results: Row) -> Any:
    """The part whose scores plots show: the first one, or the headline's if a group has no score on the first."""
    lead = VIEWS[results["task"]].lead
    whole = all(group[lead]["mean"] is not None for group in results["groups"])
    return results["part"] if whole else results["headline"]


def score_of(row: Row, key: str, results: Row, part: str) -> Any:
    """A model's or group's score on `part`; those on the first part are at the top level of `row`."""
    return row[key] if part == results["part"] else row[part][key]


def kind(row: Row) -> str:
    if row["kind"] == "teachers":
        return f"teacher, annotations found by {row['annotated_by']}" if "annotated_by" in row else "teacher"
    teachers = row["teachers"]
    if not teachers:
        return "student, from scratch"
    return f"student of {', '.join(teachers) if len(teachers) < 3 else f'{len(teachers)} teachers'}"


# --- how numbers are written -------------------------------------------------------------------------


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def spread_text(spread: dict[str, float | None]) -> str:
    """Mean ± sample standard deviation, in percent."""
    deviation = "" if spread["std"] is None else f" ± {percent(spread['std'])}"
    return percent(spread["mean"]) + deviation


def plain(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def significant(value: float | None) -> str:
    """Three significant digits, never an exponent."""
    if value is None:
        return ""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def large(value: float | None, unit: str = "") -> str:
    """Three significant digits with k, M or G (powers of 1000)."""
    if value is None:
        return ""
    rounded = float(f"{value:.3g}")
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= factor:
            return f"{significant(rounded / factor)} {prefix}{unit}"
    return f"{rounded:g} {unit}".strip()


def times(value: float | None) -> str:
    return "" if value is None else f"{significant(value)}×"


SAME = 0.05  # a ratio nearer to 1 than this is worded as equality


def size_in_words(compression: float) -> str:
    """A student's number of parameters compared with its teacher's; `compression` is the teacher's over the student's."""
    if abs(compression - 1) < SAME:
        return "about as many as the teacher"
    return f"{times(compression)} fewer" if compression > 1 else f"{times(1 / compression)} more"


def speed_in_words(speedup: float) -> str:
    """A student's speed compared with its teacher's; `speedup` is the student's over the teacher's."""
    if abs(speedup - 1) < SAME:
        return "about as fast"
    return f"{times(speedup)} as fast" if speedup > 1 else f"{times(1 / speedup)} slower"


# --- columns -----------------------------------------------------------------------------------------


def _score_columns(results: Row, write: Callable[[Any], str]) -> list[tuple[str, Callable[[Row], str]]]:
    """The task's scores on every evaluated part; those of the first part are at the top level of a row."""
    first = results["models"][0] if results["models"] else {}
    parts = [key for key, value in first.items() if isinstance(value, dict)]
    columns: list[tuple[str, Callable[[Row], str]]] = []
    scores = VIEWS[results["task"]].columns
    for score, title in scores:
        columns.append((f"{title}, {results['part']} (%)", partial(_score, write, score)))
    for part in parts:
        for score, title in scores:
            columns.append((f"{title}, {part} (%)", partial(_score, write, score, part=part)))
    return columns


def _score(write: Callable[[Any], str], score: str, row: Row, part: str | None = None) -> str:
    return write(row[part][score] if part else row[score])


def _cost_columns(results: Row) -> list[tuple[str, Callable[[Row], str]]]:
    compared = results["teacher"] is not None
    columns: list[tuple[str, Callable[[Row], str]]] = [
        (
            "parameters" + " (compression)" * compared,
            lambda g: large(g["parameters"]) + _ratio(g, "compression"),
        ),
        ("on disk", lambda g: large(g["bytes"], "B")),
    ]
    for device in ("cpu", "gpu"):
        for batch, way in itertools.product((1, 64), VIEWS[results["task"]].ways):
            title = f"rows/s, {device.upper()}, batch {batch}{', ' * bool(way)}{way}" + " (speed-up)" * compared
            columns.append((title, partial(_rate, key=f"{device}_{batch}" + f"_{way}" * bool(way))))
    columns.append((f"layers a row, {results['part']}", lambda g: significant(g.get("mean_layer"))))
    columns.append(("s / epoch", lambda g: significant(g.get("seconds_per_epoch"))))
    return columns


def _exits(row: Row) -> str:
    """The shares of rows that left a model at each exit, in percent, as `1: 40.00, 4: 60.00`."""
    if "exit_rows" not in row:
        return ""
    total = max(1, sum(row["exit_rows"]))
    return ", ".join(
        f"{n}: {percent(count / total)}" for n, count in zip(row["exit_layers"], row["exit_rows"], strict=True)
    )


def _rate(row: Row, key: str) -> str:
    return significant(row.get(f"rows_per_second_{key}")) + _ratio(row, f"speedup_{key}")


def _ratio(row: Row, key: str) -> str:
    return f" ({times(row[key])})" if key in row else ""


def _table(columns: list[tuple[str, Callable[[Row], str]]], rows: list[Row], marked: set[int]) -> Table:
    cells = [[write(row) for _, write in columns] for row in rows]
    kept = [c for c in range(len(columns)) if any(row[c] for row in cells) or not rows]
    return Table([columns[c][0] for c in kept], [[row[c] for c in kept] for row in cells], frozenset(marked))

"""The report as pages: Markdown that points to the plots, and one HTML file that holds everything itself."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dtrain.report import several, tables
from dtrain.report.examples import bracketed, marked
from dtrain.report.points import points_table, shaded_texts
from dtrain.tasks.registry import VIEWS
from dtrain.tasks.view import View


def markdown(results: dict[str, Any], plots: dict[str, str]) -> str:
    """The report in GitHub's Markdown; `plots` gives the file name of each plot that was drawn."""
    text = _environment(escape=False).get_template("report.md.j2").render(**_context(results, plots))
    return text.rstrip("\n") + "\n"


def html(results: dict[str, Any], plots: dict[str, Path], recipe: str) -> str:
    """The report as one page without outside resources: styles and images are inside.

    Args:
        plots: the file of each plot that was drawn.
        recipe: the resolved recipe as YAML.
    """
    images = {
        name: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for name, path in plots.items()
    }
    return _environment(escape=True).get_template("report.html.j2").render(**_context(results, images), recipe=recipe)


def several_markdown(results: dict[str, Any]) -> str:
    """The page on several tasks (`several.overview`) in GitHub's Markdown."""
    text = _environment(escape=False).get_template("several.md.j2").render(**_over_tasks(results))
    return text.rstrip("\n") + "\n"


def several_html(results: dict[str, Any], recipe: str) -> str:
    """The page on several tasks as HTML without outside resources, with links to the pages of the tasks."""
    return _environment(escape=True).get_template("several.html.j2").render(**_over_tasks(results), recipe=recipe)


def _over_tasks(results: dict[str, Any]) -> dict[str, Any]:
    seeds = any(len(group["seeds"]) > 1 for group in results["groups"])
    return {"results": results, "models": several.table(results), "seeds": seeds}


def _environment(escape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("dtrain.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: text.replace("|", "\\|")
    environment.globals.update(
        plain=tables.plain,
        percent=tables.percent,
        large=tables.large,
        times=tables.times,
        size_in_words=tables.size_in_words,
        speed_in_words=tables.speed_in_words,
    )
    environment.filters["bracketed"] = bracketed
    return environment


def _context(results: dict[str, Any], plots: dict[str, Any]) -> dict[str, Any]:
    view = VIEWS[results["task"]]
    by_name = {(model["kind"], model["name"]): model for model in results["models"]}
    details = results["details"] or {}
    detailed = by_name.get((details.get("kind"), details.get("name")))

    def lead(model: dict[str, Any], part: str | None = None) -> float:
        return tables.score_of(model, view.lead, results, part or part_of(model))

    def part_of(model: dict[str, Any]) -> str:
        """The headline's part; the other one if no row there has the side that the model reads."""
        parts = [results["headline"], results["part"]]
        return next((part for part in parts if lead(model, part) is not None), results["headline"])

    student = by_name.get(("students", results["student"]))
    on_first = student is None or lead(student, results["part"]) is not None
    return {
        "results": results,
        "view": view,
        "lead": lead,
        "part_of": part_of,
        # Said where the best model was chosen on other rows than those of the score that is shown.
        "chosen": f" (chosen on {results['part']})" if results["headline"] != results["part"] and on_first else "",
        "teacher": by_name.get(("teachers", results["teacher"])),
        "student": student,
        "sides": sides_in_words(results.get("sides", {})),
        "summary": tables.summary(results),
        "models": tables.every_model(results),
        "exported": tables.exported(results) if results["exported"] else None,
        "annotated": tables.annotated(results) if results.get("annotated") else None,
        "search": tables.search(results["search"], results["failed"]) if results.get("search") else None,
        "phases": tables.phases(results["phases"], view.lead) if results.get("phases") else None,
        "points": points_table(results["points"]) if results.get("points") else None,
        "shaded": shaded_texts(results["points"]) if results.get("points") else [],
        "classes": tables.classes(details["per_class"]) if "per_class" in details else None,
        "types": tables.types(details["per_type"], detailed) if "per_type" in details and detailed else None,
        "examples": [
            {**example, "pieces": marked(example, list(details["per_type"]))} for example in details.get("examples", [])
        ],
        "written": details if "written" in details else None,
        "conditions": conditions(results["speed"], view),
        "plots": plots,
    }


def sides_in_words(sides: dict[str, dict[str, Any]]) -> str:
    """Which models are scored on which rows, if they read different sides of rows; else empty."""
    if len(sides) < 2:
        return ""
    told = []
    for side, of in sides.items():
        rows = ", ".join(f"{part} {tables.plain(count)}" for part, count in of["rows"].items())
        told.append(f"{side} ({rows or 'no row with a label'}): {', '.join(of['models'])}")
    return (
        f"Each model is scored on the rows that have the side it reads: {'; '.join(told)}. Scores on different rows do not "
        "compare."
    )


def conditions(speed: dict[str, Any] | None, view: View) -> str | None:
    """One sentence on how speed was measured, so that the numbers can be judged and repeated."""
    if speed is None:
        return None
    machine = speed["machine"]
    devices = f"{machine['cpu']} ({machine['cores']} cores), one thread"
    if machine["gpu"]:
        devices += f"; {machine['gpu']}"
    rows = ", ".join(
        f"{count} rows ({_measurement(name)}, {speed['repeats'][name]} times)" for name, count in speed["rows"].items()
    )
    work = f"the forward pass from token ids{view.timed}"
    shared = " Models of one structure share a measurement." if len(view.ways) == 1 else ""
    return (
        f"Measured on {devices}; torch {machine['torch']}, float32, {work} on {rows} of "
        f"{speed['part']} in file order, models in turn in one process; the median time counts.{shared}"
    )


def _measurement(name: str) -> str:
    """`cpu_64` as `CPU, batch 64`; a third word is the way in which the task asked the model."""
    device, batch, *way = name.split("_")
    return ", ".join([device.upper(), f"batch {batch}", *way])

"""report: one page that compares teachers and students, with the numbers and plots it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtrain.errors import InputError
from dtrain.log import say, warn
from dtrain.metrics.tasks import scores_of
from dtrain.plan import Plan, plan_of
from dtrain.recipe import Recipe, dump_recipe
from dtrain.report import pages, plots, several
from dtrain.report.points import shaded_texts
from dtrain.report.results import collect, evaluated_parts, trained_members
from dtrain.report.speed import measure_run
from dtrain.report.tables import brief
from dtrain.runfolder import RunFolder, atomic_write, mark_done, publish_folder, read_json, write_json
from dtrain.runtime.distributed import World
from dtrain.tasks.registry import VIEWS


def run(recipe: Recipe, world: World, folder: RunFolder) -> None:
    """Read the model folders and their scores, write `report/`. The main rank works, the others wait.

    Raises:
        InputError: a model that did not fail is not evaluated yet.
    """
    world.run_on_main(lambda: _write(recipe, folder))


def _write(recipe: Recipe, folder: RunFolder) -> None:
    plan = plan_of(recipe)
    _check_complete(plan)
    with publish_folder(folder.report) as aside:
        written = dump_recipe(recipe)
        if recipe.several:
            of_tasks = {
                name: _write_task(of, folder.of_task(name), aside / name, written) for name, of in plan.tasks.items()
            }
            results = several.overview(recipe, of_tasks)
            write_json(aside / "results.json", results)
            with atomic_write(aside / "report.md") as file:
                file.write(pages.several_markdown(results))
            with atomic_write(aside / "report.html") as file:
                file.write(pages.several_html(results, written))
            lines = several.brief(results)
        else:
            results = _write_task(plan, folder, aside, written)
            lines = brief(results)
        # A student whose failure is not final is tried again by the next run, which then writes the report anew.
        if all(plan.stage_done(stage) for stage in ("finetune", "distill", "evaluate")):
            mark_done(aside, plan.report)
    for line in lines:
        say(line)
    for remark in results["remarks"]:
        warn(remark)
    say(f"report: {folder.report / 'report.html'}")


def _write_task(plan: Plan, folder: RunFolder, aside: Path, written: str) -> dict[str, Any]:
    """Write the report on one task into the folder `aside`; returns what it shows (see `results.collect`).

    Args:
        folder: the run's, with the task's data.
        written: the recipe as text.
    """
    aside.mkdir(exist_ok=True)
    recipe, members = plan.recipe, trained_members(plan)
    speed = None
    if recipe.report.latency and members:
        say("report: measuring the models' speed on this machine" + (f" ({recipe.task})" if recipe.task else ""))
        speed = measure_run(members, (evaluated_parts(folder, members) or ["train"])[0], folder, recipe.knowledge)
    results = collect(recipe, plan, folder, speed)
    write_json(aside / "results.json", results)
    drawn = _draw(results, folder, aside)
    with atomic_write(aside / "report.md") as file:
        file.write(pages.markdown(results, {name: path.name for name, path in drawn.items()}))
    with atomic_write(aside / "report.html") as file:
        file.write(pages.html(results, drawn, written))
    return results


def _check_complete(plan: Plan) -> None:
    problems = []
    for kind, member in plan.members():
        place = plan.folder.model(kind, member.name)
        if not plan.evaluated(kind, member.name) and (kind == "teachers" or plan.failure(member.name) is None):
            problems.append(f"{place}: not evaluated yet for this recipe; run the stage `evaluate` first")
    if problems:
        raise InputError(problems)


def _history(folder: RunFolder, kind: str, name: str) -> list[dict[str, Any]]:
    """The evaluations of a model during training; for a model of several tasks, with the scores on this one."""
    entries = read_json(folder.model(kind, name) / "history.json")
    return [entry | scores_of(entry, folder.task) for entry in entries]


def _draw(results: dict[str, Any], folder: RunFolder, target: Path) -> dict[str, Path]:
    """Draw the plots for which there are data; returns their files by name."""
    view = VIEWS[results["task"]]
    against_parameters, against_latency = f"{view.lead}_parameters", f"{view.lead}_latency"
    names = [against_parameters, against_latency, "curves", "confusion", "types", "scatter", "phases"]
    names += ["points", "points_texts"]
    paths = {name: target / f"{name}.png" for name in names}
    groups = sorted(results["groups"], key=lambda group: -(group[view.lead]["mean"] or 0.0))
    histories = [
        (
            group["name"],
            [_history(folder, group["kind"], name) for name in group["members"]],
        )
        for group in groups
    ]
    plots.score_against(results, "parameters", paths[against_parameters])
    plots.score_against(results, "milliseconds", paths[against_latency])
    plots.training_curves(histories, "valid", view, paths["curves"])
    plots.phase_curves(histories, paths["phases"])
    if results["points"]:
        plots.point_curves(results["points"], paths["points"])
        plots.shaded_texts(shaded_texts(results["points"]), paths["points_texts"])
    details = results["details"] or {}
    if "per_type" in details:
        plots.type_scores(details["per_type"], paths["types"])
    if "confusion" in details:
        plots.confusion(details["confusion"], [row["label"] for row in details["per_class"]], paths["confusion"])
    if "scatter" in details:
        gold, predicted = details["scatter"]
        plots.scatter(gold, predicted, paths["scatter"])
    return {name: path for name, path in paths.items() if path.exists()}

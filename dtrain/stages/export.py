"""export: a trained model as a folder that answers without dtrain, as ONNX also without torch.

model folder -> graph(s), tokenizer, table of normalisation, predict.py -> compared with the model on validation rows,
or on test rows where no validation row has a label
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import nn

from dtrain.data import PreparedData, tokenizer_name
from dtrain.errors import InputError
from dtrain.export.card import add_check
from dtrain.export.check import difference
from dtrain.export.folder import Wish, check_wish, export_model
from dtrain.export.record import identity_of
from dtrain.export.session import open_export, script_of
from dtrain.kept import is_run_folder, load_kept
from dtrain.log import say
from dtrain.plan import Plan, plan_of
from dtrain.predict.choose import choose, of_task
from dtrain.predict.predictor import Predictor
from dtrain.recipe import Recipe
from dtrain.recipe.sides import side_of
from dtrain.report import latency
from dtrain.runfolder import RunFolder, read_json, write_json
from dtrain.runtime.distributed import World
from dtrain.tasks.registry import task_of
from dtrain.training.workers import Workers

CHECKED = 2000  # rows on which answers are compared, at most; scores are computed on all rows
KINDS = ("teachers", "students")


class Options(TypedDict):
    """The options of the command line, for a recipe or for a model folder.

    Attributes:
        model: the name of a student or teacher; None: the best student by the metric on valid. Not for a model folder.
        task: for a model of several tasks, the one to export.
        to: `onnx` or `torch`.
        quantize: `int8`, or None.
        check: compare it with the model on the validation rows or, where none of these has a label, on the test rows.
    """

    model: str | None
    task: NotRequired[str | None]
    to: str
    quantize: str | None
    check: bool


def run(recipe: Recipe, world: World, folder: RunFolder, **options: Unpack[Options]) -> None:
    """Write `export/<model>/` in the run folder. The main rank works, the others wait.

    Raises:
        InputError: no such model, it is not trained, or it cannot be exported so.
    """
    world.run_on_main(lambda: _export(recipe, folder, options))


def run_folder(place: Path, world: World, **options: Unpack[Options]) -> None:
    """Export one model folder: into `export/` of its run or, if it is in none, into `./export/<name>/`.

    Raises:
        InputError: as `run`; or `model` is given; or `check` is given for a folder in no run, for which there are no rows.
    """
    if options["model"] is not None:
        raise InputError(f"--model: chooses among the models of a recipe, and {place} is a model folder")
    place = place.absolute()
    root = place.parent.parent
    if is_run_folder(root) and place.parent.name in KINDS:
        recipe = load_kept(str(root), [], models=True)
        options["model"] = place.name
        run(recipe, world, plan_of(recipe).folder, **options)
        return
    if options["check"]:
        raise InputError(f"--check: compares on the validation or test rows of a run, and {place} is in none")
    wish = Wish(place, place.name, options["to"], options["quantize"] is not None, options.get("task"))
    final = Path("export") / wish.folder_name
    world.run_on_main(lambda: _write(wish, final))


def _write(wish: Wish, final: Path) -> None:
    export_model(wish, final)
    say(f"export: {final}")


def _export(recipe: Recipe, folder: RunFolder, options: Options) -> None:
    plan = of_task(plan_of(recipe), options["model"], options.get("task"))
    kind, name = choose(options["model"], plan)
    place = folder.model(kind, name)
    task = plan.recipe.task if _of_several(plan, kind, name) else None
    wish = Wish(place, name, options["to"], options["quantize"] is not None, task)
    check_wish(wish)
    final = folder.export / wish.folder_name
    model, _ = export_model(wish, final)
    metrics = {**read_json(final / "metrics.json"), "kind": kind, "made_from": identity_of(place)}
    if options["check"]:
        member = next(m for k, m in plan.members() if (k, m.name) == (kind, name))
        data = PreparedData.open(folder.of_task(plan.recipe.task))
        metrics |= _compared(wish, final, model, data, tokenizer_name(member), str(member.metric))
    write_json(final / "metrics.json", metrics)
    shutil.rmtree(final / "__pycache__", ignore_errors=True)
    say(f"export: {final} ({metrics['bytes']:,} bytes)")


def _of_several(plan: Plan, kind: str, name: str) -> bool:
    """Whether a model answers for more than one task."""
    whole = plan.recipe.whole
    member = next(m for m in (whole.teachers if kind == "teachers" else whole.students) if m.name == name)
    return len(whole.tasks_of(member)) > 1


def _compared(
    wish: Wish, final: Path, model: nn.Module, data: PreparedData, tokenizer: str, metric: str
) -> dict[str, Any]:
    """Compare an export with its model: answers to texts (by `Predictor` and by `predict.py`), scores, speed.

    The rows are those for validation or, where none of these has a label and the side that the model reads, for test.

    Returns:
        The entry `check` of the export's `metrics.json`.

    Raises:
        InputError: no row with a label has the side that the model reads.
    """
    split = next((name for name in ("valid", "test") if name in data.label_counts(tokenizer)), None)
    if split is None:
        raise InputError(
            "--check: compares scores, and no validation or test row with a label has the side that it reads"
        )
    part = data.part(split, tokenizer)
    rows = data.rows(split, side_of(tokenizer)).select(range(min(CHECKED, len(part))))
    texts = [list(rows[column]) for column in ("text", "text_b") if column in rows.column_names]
    found = difference(Predictor(wish.place, task=wish.task)(*texts), script_of(final).Model()(*texts))
    task, workers = task_of(data), Workers(torch.device("cpu"), torch.get_num_threads())
    both = {"model": model, "export": open_export(final, model)}
    before, after = (task.scores(each, part, workers) for each in both.values())
    scores = {name: {"before": before[name], "after": after[name]} for name in dict.fromkeys((metric, *task.compared))}
    compared = (f"{name} {of['before']:.4f} before, {of['after']:.4f} after" for name, of in scores.items())
    told = f"on {found.in_words('validation' if split == 'valid' else split)}; {', '.join(compared)}"
    timed = latency.measure(
        {name: task.timed(each, part, "") for name, each in both.items()},
        dict.fromkeys(both, part),
        torch.device("cpu"),
        1,
    )["milliseconds"]
    speed = ", ".join(
        f"{name} {' and '.join(f'{share} {value:.2f}' for share, value in of.items())} ms" for name, of in timed.items()
    )
    speed = f"one row on one core of {latency.machine()['cpu']}: {speed}"
    say(f"export: check {told}; {speed}")
    add_check(final, f"{told}; {speed}")
    return {
        "check": {
            "split": split,
            "rows": found.rows,
            "flips": found.flips,
            "largest_difference": found.largest,
            "milliseconds": timed,
            "metric": metric,
            **scores[metric],
            "scores": scores,
        }
    }
